//! The quotas of a policy file, checked one by one.

use std::sync::Arc;

use tollgate_core::{
    amount::{Amount, Limit},
    reservation::MAX_SLOTS,
    window::{CalendarWindow, SlidingWindow, Window},
};

use super::Builder;
use crate::{
    format::{self, Word},
    policy::{
        Place, Problem, Quota, QuotaLevel, Scope, Unit,
        pool::Pool,
        quota::{CONCURRENT_REQUESTS, NamedAnswer, SLOT_RETRY_AFTER_MS, default_label, default_name},
    },
};

impl Builder {
    /// A quota of a rule, with this scope or the default one.
    pub(super) fn quota(
        &mut self,
        written: &format::Quota,
        scope: Option<&format::Scope>,
        place: &Place,
    ) -> Option<Quota> {
        let quota = self.counter(&written.counter, scope, QuotaLevel::Account, place);
        let visible = written.visible.or_else(|| quota.as_ref().map(|quota| quota.visible)).unwrap_or(true);
        let refused_as: Option<Arc<str>> = written.refused_as.as_ref().map(|name| name.0.as_str().into());
        if let Some(name) = &refused_as {
            self.named_answers.push(NamedAnswer {
                place: place.at("refused_as"),
                name: name.clone(),
                hidden: !visible,
                of_slots: written.counter.unit.0 == CONCURRENT_REQUESTS,
            });
        }
        let quota = quota?;
        let pool = written.pool.map(|pool| Pool { shares: pool.shares.map(|share| share.0) });
        if let Some(problem) = pool.and_then(|pool| pool.problem_in(&quota.scope, &quota.window)) {
            self.error(place.at("pool"), problem);
        }
        if written.required && quota.unit.is_in_every_usage() {
            self.error(place.at("required"), Problem::RequiredUnit(quota.unit.name.to_string()));
        }
        let slot_retry_after_ms = match (&written.retry_after, quota.slot_retry_after_ms) {
            (Some(_), None) => {
                self.error(place.at("retry_after"), Problem::AdvisedWait);
                None
            }
            (Some(wait), Some(_)) => Some(wait.ms()),
            (None, default) => default,
        };
        Some(Quota {
            name: written.name.as_ref().map_or(quota.name, |name| name.0.as_str().into()),
            label: written.label.as_ref().map_or(quota.label, |label| label.0.as_str().into()),
            shadow: written.shadow || quota.shadow,
            visible,
            refused_as,
            required: written.required,
            on_failure: written.on_failure.map_or(quota.on_failure, Into::into),
            slot_retry_after_ms,
            pool,
            ..quota
        })
    }

    /// The quota of this counter and limit, with this scope or the default scope of the level. Everything else has the
    /// policy's default.
    pub(in crate::policy) fn counter(
        &mut self,
        written: &format::CounterLimit,
        scope: Option<&format::Scope>,
        level: QuotaLevel,
        place: &Place,
    ) -> Option<Quota> {
        let concurrent = written.unit.0 == CONCURRENT_REQUESTS;
        let known = || self.units.iter().find(|unit| *unit.name == written.unit.0).cloned();
        let unit = if concurrent { Some(Unit::named(CONCURRENT_REQUESTS)) } else { known() };
        if unit.is_none() {
            let known = self.units.iter().map(|unit| unit.name.to_string());
            let known: Vec<String> = known.chain([CONCURRENT_REQUESTS.to_owned()]).collect();
            self.unknown("unit", &written.unit.0, &known, place.at("unit"));
        }
        let window = self.window(written.per.as_ref(), &place.at("per"));
        match (&window, concurrent) {
            (Some(Window::Concurrent), false) => self.error(place.at("per"), Problem::NoWindow),
            (Some(Window::Sliding(_) | Window::Calendar(_)), true) => {
                self.error(place.at("per"), Problem::ConcurrentWindow);
            }
            _ => {}
        }
        let limit = written.limit.finite();
        if concurrent && limit.is_none_or(|limit| limit > u64::from(MAX_SLOTS)) {
            self.error(place.at("limit"), Problem::TooManySlots);
        }
        let limit = match limit {
            Some(limit) => self.checked(Amount::try_from(limit), place.at("limit")).map(Limit::Finite),
            None => Some(Limit::Unlimited),
        };
        let scope = self.scope(scope.map(|scope| &*scope.0), level, place);
        let (unit, window, limit, scope) = (unit?, window?, limit?, scope?);
        Some(Quota {
            name: default_name(&unit, &window).into(),
            label: default_label(&unit, &window).into(),
            unit,
            window,
            limit,
            // What several accounts use shows each of them the use of the others.
            visible: scope.within_account(),
            scope,
            shadow: self.shadow,
            refused_as: None,
            required: false,
            on_failure: self.on_failure,
            slot_retry_after_ms: concurrent.then_some(SLOT_RETRY_AFTER_MS),
            pool: None,
        })
    }

    fn window(&mut self, per: Option<&format::Window>, place: &Place) -> Option<Window> {
        match per {
            None => Some(Window::Concurrent),
            Some(format::Window::Trailing(length)) => {
                self.checked(SlidingWindow::from_ms(length.ms()), place.clone()).map(Window::Sliding)
            }
            Some(format::Window::Calendar(calendar)) => {
                let unit = calendar.calendar.into();
                let zone = calendar.zone.as_ref().map_or("UTC", |zone| &zone.0);
                let window = self.checked(CalendarWindow::new(unit, zone), place.at("zone"))?;
                let same = |known: &&Arc<CalendarWindow>| known.unit() == unit && known.zone() == window.zone();
                if let Some(known) = self.calendars.iter().find(same) {
                    return Some(Window::Calendar(known.clone()));
                }
                let window = Arc::new(window);
                self.calendars.push(window.clone());
                Some(Window::Calendar(window))
            }
        }
    }

    pub(in crate::policy) fn scope(
        &mut self,
        names: Option<&[Word]>,
        level: QuotaLevel,
        place: &Place,
    ) -> Option<Arc<Scope>> {
        let Some(names) = names else {
            return Some(match level {
                QuotaLevel::Account => self.scopes.account.clone(),
                QuotaLevel::Key => self.scopes.key.clone(),
            });
        };
        let scope = self.checked(Scope::parse(names), place.at("scope"))?;
        if let Some(known) = self.scopes.known.iter().find(|known| ***known == scope) {
            return Some(known.clone());
        }
        let scope = Arc::new(scope);
        self.scopes.known.push(scope.clone());
        Some(scope)
    }
}
