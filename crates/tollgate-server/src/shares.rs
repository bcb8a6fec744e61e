//! Capacity that callers share: bounded in all, and for each of them.

use std::{collections::HashMap, mem, net::IpAddr, sync::Arc};

use parking_lot::Mutex;
use tollgate_service::blocks::client_network;

/// The holder of capacity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    /// Any service, if services are not authenticated: all of them count as one, so there are no parts.
    Anyone,
    /// The service with the token or certificate of this name.
    Service(Arc<str>),
    /// The administrator with the token of this name.
    Admin(Arc<str>),
    /// Every caller from this address.
    Address(IpAddr),
}

impl Holder {
    /// The callers of an address, as they are counted by.
    pub(crate) fn address(address: IpAddr) -> Self {
        Self::Address(client_network(address))
    }
}

/// Why there is no capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exhausted {
    /// All of it is held.
    All,
    /// The holder has its share.
    Share,
}

/// A capacity, in whatever unit its user counts.
pub(crate) struct Shares {
    total: usize,
    /// The most that one holder has.
    share: usize,
    held: Mutex<Usage>,
}

/// The amounts that are held now. A holder of nothing has no entry.
#[derive(Default)]
struct Usage {
    all: usize,
    by_holder: HashMap<Holder, usize>,
}

impl Shares {
    /// A capacity of `total`, of which one holder has at most `share`.
    pub(crate) fn new(total: usize, share: usize) -> Arc<Self> {
        Arc::new(Self { total, share, held: Mutex::default() })
    }

    /// A permit for `amount`, which is given back when the permit is dropped.
    pub(crate) fn acquire(self: &Arc<Self>, holder: Holder, amount: usize) -> Result<Permit, Exhausted> {
        self.take(&holder, amount)?;
        Ok(Permit { shares: Arc::clone(self), holder, amount })
    }

    fn take(&self, holder: &Holder, amount: usize) -> Result<(), Exhausted> {
        let mut held = self.held.lock();
        if amount > self.total - held.all {
            return Err(Exhausted::All);
        }
        if *holder != Holder::Anyone {
            let own = held.by_holder.get(holder).copied().unwrap_or_default();
            if amount > self.share.saturating_sub(own) {
                return Err(Exhausted::Share);
            }
            held.by_holder.insert(holder.clone(), own + amount);
        }
        held.all += amount;
        Ok(())
    }
}

/// Capacity that is held.
pub(crate) struct Permit {
    shares: Arc<Shares>,
    holder: Holder,
    amount: usize,
}

impl Permit {
    /// Holds at least `amount` from now on; if there is not enough, the amount held before stays held.
    pub(crate) fn grow_to(&mut self, amount: usize) -> Result<(), Exhausted> {
        if amount > self.amount {
            self.shares.take(&self.holder, amount - self.amount)?;
            self.amount = amount;
        }
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock();
        held.all -= self.amount;
        // A holder that has returned everything leaves no entry: unauthenticated callers can use many addresses.
        let holder = mem::replace(&mut self.holder, Holder::Anyone);
        if let std::collections::hash_map::Entry::Occupied(mut own) = held.by_holder.entry(holder) {
            *own.get_mut() -= self.amount;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Holder {
        Holder::Service(name.into())
    }

    #[test]
    fn a_holder_has_its_share_and_all_have_the_total() {
        let shares = Shares::new(10, 6);
        let mut first = shares.acquire(service("a"), 4).ok().unwrap();
        assert_eq!(shares.acquire(service("a"), 3).err(), Some(Exhausted::Share));
        assert_eq!(first.grow_to(7), Err(Exhausted::Share));
        assert_eq!(first.grow_to(6), Ok(()));
        assert_eq!(first.grow_to(1), Ok(()), "it never shrinks");
        let second = shares.acquire(Holder::Admin("a".into()), 4).ok().unwrap();
        assert_eq!(shares.acquire(service("c"), 1).err(), Some(Exhausted::All));
        drop(first);
        let third = shares.acquire(Holder::Anyone, 6).ok().unwrap();
        drop((second, third));
        let held = shares.held.lock();
        assert_eq!((held.all, held.by_holder.len()), (0, 0));
    }

    #[test]
    fn an_ipv6_address_counts_as_its_network() {
        let of = |text: &str| Holder::address(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
