//! Capacity that callers share, with a bound in total and per caller.

use std::{collections::HashMap, mem, net::IpAddr, sync::Arc};

use parking_lot::Mutex;
use tollgate_service::blocks::client_network;

/// The holder of capacity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    /// Any service, if services are not authenticated. There is no bound per caller.
    Anyone,
    /// The service with the token or certificate of this name.
    Service(Arc<str>),
    /// The administrator with the token of this name.
    Admin(Arc<str>),
    /// Every caller from this address.
    Address(IpAddr),
}

impl Holder {
    /// The callers of the network of an address.
    pub(crate) fn address(address: IpAddr) -> Self {
        Self::Address(client_network(address))
    }
}

/// Why capacity cannot be acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exhausted {
    /// All capacity is in use.
    All,
    /// The holder uses its whole share.
    Share,
}

/// A capacity.
pub(crate) struct Shares {
    total: usize,
    /// The maximum amount of one holder.
    share: usize,
    usage: Mutex<Usage>,
}

/// The amounts in use. A holder without any has no entry.
#[derive(Default)]
struct Usage {
    total: usize,
    amount_by_holder: HashMap<Holder, usize>,
}

impl Shares {
    /// A capacity of `total`, of which one holder has at most `share`.
    pub(crate) fn new(total: usize, share: usize) -> Arc<Self> {
        Arc::new(Self { total, share, usage: Mutex::default() })
    }

    /// Acquires `amount`, which is released when the permit is dropped.
    pub(crate) fn acquire(self: &Arc<Self>, holder: Holder, amount: usize) -> Result<Permit, Exhausted> {
        self.take(&holder, amount)?;
        Ok(Permit { shares: Arc::clone(self), holder, amount })
    }

    fn take(&self, holder: &Holder, amount: usize) -> Result<(), Exhausted> {
        let mut usage = self.usage.lock();
        if amount > self.total - usage.total {
            return Err(Exhausted::All);
        }
        if *holder != Holder::Anyone {
            let own = usage.amount_by_holder.get(holder).copied().unwrap_or_default();
            if amount > self.share.saturating_sub(own) {
                return Err(Exhausted::Share);
            }
            usage.amount_by_holder.insert(holder.clone(), own + amount);
        }
        usage.total += amount;
        Ok(())
    }
}

/// Acquired capacity.
pub(crate) struct Permit {
    shares: Arc<Shares>,
    holder: Holder,
    amount: usize,
}

impl Permit {
    /// Increases the amount to at least `amount`; on an error the amount is unchanged.
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
        let mut usage = self.shares.usage.lock();
        usage.total -= self.amount;
        // Unused entries are removed, because unauthenticated callers can use many addresses.
        let holder = mem::replace(&mut self.holder, Holder::Anyone);
        if let std::collections::hash_map::Entry::Occupied(mut own) = usage.amount_by_holder.entry(holder) {
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
    fn one_holder_gets_its_share_and_all_get_the_total() {
        let shares = Shares::new(10, 6);
        let mut first = shares.acquire(service("a"), 4).ok().unwrap();
        assert_eq!(shares.acquire(service("a"), 3).err(), Some(Exhausted::Share));
        assert_eq!(first.grow_to(7), Err(Exhausted::Share));
        assert_eq!(first.grow_to(6), Ok(()));
        assert_eq!(first.grow_to(1), Ok(()), "it is not reduced");
        let second = shares.acquire(Holder::Admin("a".into()), 4).ok().unwrap();
        assert_eq!(shares.acquire(service("c"), 1).err(), Some(Exhausted::All));
        drop(first);
        let third = shares.acquire(Holder::Anyone, 6).ok().unwrap();
        drop((second, third));
        let usage = shares.usage.lock();
        assert_eq!((usage.total, usage.amount_by_holder.len()), (0, 0));
    }

    #[test]
    fn ipv6_addresses_of_a_network_are_one_holder() {
        let holder = |text: &str| Holder::address(text.parse().unwrap());
        assert_eq!(holder("2001:db8::1"), holder("2001:db8::ffff"));
        assert_ne!(holder("2001:db8::1"), holder("2001:db8:0:1::1"));
        assert_ne!(holder("10.0.0.1"), holder("10.0.0.2"));
    }
}
