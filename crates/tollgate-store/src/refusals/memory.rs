//! Refusals in this process's memory.

use std::{collections::VecDeque, future::ready};

use indexmap::IndexMap;
use parking_lot::Mutex;
use tollgate_core::claim::Partition;

use super::{MAX_REFUSALS, Refusal, RefusalFuture, RefusalLog};

/// A log in memory, which is lost when the process ends. At its maximum number of accounts, it forgets the account with
/// the oldest last refusal.
pub struct MemoryRefusals {
    max_accounts: usize,
    /// The account that was refused last comes last.
    accounts: Mutex<IndexMap<Partition, VecDeque<Refusal>>>,
}

impl MemoryRefusals {
    /// A log of up to `max_accounts` accounts.
    pub fn new(max_accounts: usize) -> Self {
        Self { max_accounts: max_accounts.max(1), accounts: Mutex::default() }
    }
}

impl RefusalLog for MemoryRefusals {
    fn append<'a>(&'a self, account: Partition, refusals: &'a [Refusal]) -> RefusalFuture<'a, ()> {
        let mut accounts = self.accounts.lock();
        let mut kept = accounts.shift_remove(&account).unwrap_or_default();
        for refusal in refusals {
            kept.push_front(refusal.clone());
        }
        kept.truncate(MAX_REFUSALS);
        if accounts.len() >= self.max_accounts {
            accounts.shift_remove_index(0);
        }
        accounts.insert(account, kept);
        Box::pin(ready(Ok(())))
    }

    fn latest(&self, account: Partition) -> RefusalFuture<'_, Vec<Refusal>> {
        let found = self.accounts.lock().get(&account).map(|kept| kept.iter().cloned().collect());
        Box::pin(ready(Ok(found.unwrap_or_default())))
    }
}
