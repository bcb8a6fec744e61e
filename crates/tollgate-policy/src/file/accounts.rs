//! A policy's rules for accounts and keys in the store, checked.

use crate::{
    format::accounts as format,
    policy::{Place, Policy},
};

/// The default for the maximum number of valid keys of an account.
const DEFAULT_MAX_ACTIVE_KEYS: usize = 500;

/// The rules for the accounts of one domain.
#[derive(Debug)]
pub struct AccountRules {
    /// How many keys of an account may be good at once.
    pub max_active_keys: usize,
    promotions: Vec<format::Promotion>,
}

impl AccountRules {
    /// The rules of a policy file.
    pub(crate) fn of(
        keys: &format::Keys,
        promotions: &[format::Promotion],
        policy: &Policy,
    ) -> Result<Self, Vec<(Place, String)>> {
        let mut mistakes = Vec::new();
        for (at, promotion) in promotions.iter().enumerate() {
            let place = Place::root().at("promotions").at(at);
            for (field, tier) in [("from", &promotion.from.0), ("to", &promotion.to.0)] {
                if policy.tier_named(tier).is_none() {
                    let known: Vec<&str> = policy.tiers().iter().map(|tier| &*tier.name).collect();
                    mistakes
                        .push((place.at(field), format!("there is no tier {tier:?}; there is: {}", known.join(", "))));
                }
            }
            if promotion.from == promotion.to {
                mistakes.push((place.at("to"), "is the tier it comes from".to_owned()));
            }
            let same = |other: &format::Promotion| (&other.on, &other.from) == (&promotion.on, &promotion.from);
            if promotions.iter().take(at).any(same) {
                let message = "another promotion has the same event and tier; an account can only go to one".to_owned();
                mistakes.push((place.at("from"), message));
            }
        }
        let max_active_keys = keys.max_active.map_or(DEFAULT_MAX_ACTIVE_KEYS, |max| max.0);
        if mistakes.is_empty() { Ok(Self { max_active_keys, promotions: promotions.to_vec() }) } else { Err(mistakes) }
    }

    /// Where an event of this type moves an account of `tier`, if anywhere.
    pub fn promotion(&self, on: &str, tier: &str) -> Option<&str> {
        let fits = |promotion: &&format::Promotion| promotion.on.0 == on && promotion.from.0 == tier;
        self.promotions.iter().find(fits).map(|promotion| &*promotion.to.0)
    }

    /// The events that move an account of `tier`, and where.
    pub fn promotions_from<'a>(&'a self, tier: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let from = self.promotions.iter().filter(move |promotion| promotion.from.0 == tier);
        from.map(|promotion| (&*promotion.on.0, &*promotion.to.0))
    }

    /// The types of events that mean something.
    pub fn events(&self) -> Vec<&str> {
        let mut events: Vec<&str> = self.promotions.iter().map(|promotion| &*promotion.on.0).collect();
        events.sort_unstable();
        events.dedup();
        events
    }
}
