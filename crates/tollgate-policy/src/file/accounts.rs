//! The rules of a policy for accounts and keys in the store.

use crate::{
    format::accounts as format,
    policy::{Mistake, Place, Policy},
};

/// The default for the maximum number of valid keys of an account.
const DEFAULT_MAX_ACTIVE_KEYS: usize = 500;

/// The rules for the accounts of one domain.
#[derive(Debug)]
pub struct AccountRules {
    /// Maximum number of valid keys of an account.
    pub max_active_keys: usize,
    promotions: Vec<format::Promotion>,
}

impl AccountRules {
    /// The rules of a policy file.
    pub(crate) fn of(
        keys: &format::Keys,
        promotions: &[format::Promotion],
        policy: &Policy,
    ) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        for (at, promotion) in promotions.iter().enumerate() {
            let place = Place::root().at("promotions").at(at);
            for (field, tier) in [("from", &promotion.from.0), ("to", &promotion.to.0)] {
                if policy.tier_named(tier).is_none() {
                    let known: Vec<&str> = policy.tiers().iter().map(|tier| &*tier.name).collect();
                    let message = format!("there is no tier {tier:?}; there is: {}", known.join(", "));
                    mistakes.push(Mistake::new(place.at(field), message));
                }
            }
            if promotion.from == promotion.to {
                mistakes.push(Mistake::new(place.at("to"), "is the same tier as `from`"));
            }
            let same = |other: &format::Promotion| (&other.on, &other.from) == (&promotion.on, &promotion.from);
            if promotions.iter().take(at).any(same) {
                let message = "another promotion has the same event and tier; an account can only go to one";
                mistakes.push(Mistake::new(place.at("from"), message));
            }
        }
        let max_active_keys = keys.max_active.map_or(DEFAULT_MAX_ACTIVE_KEYS, |max| max.0);
        if mistakes.is_empty() { Ok(Self { max_active_keys, promotions: promotions.to_vec() }) } else { Err(mistakes) }
    }

    /// The tier to which an event of this type moves an account of `tier`, if it moves it.
    pub fn promotion(&self, on: &str, tier: &str) -> Option<&str> {
        let fits = |promotion: &&format::Promotion| promotion.on.0 == on && promotion.from.0 == tier;
        self.promotions.iter().find(fits).map(|promotion| &*promotion.to.0)
    }

    /// The events that move an account of `tier`, with the new tier of each.
    pub fn promotions_from<'a>(&'a self, tier: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let from = self.promotions.iter().filter(move |promotion| promotion.from.0 == tier);
        from.map(|promotion| (&*promotion.on.0, &*promotion.to.0))
    }

    /// The types of events that move accounts.
    pub fn events(&self) -> Vec<&str> {
        let mut events: Vec<&str> = self.promotions.iter().map(|promotion| &*promotion.on.0).collect();
        events.sort_unstable();
        events.dedup();
        events
    }
}
