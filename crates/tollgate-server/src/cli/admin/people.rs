//! Responses as text for people.

use indexmap::IndexMap;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tollgate_api::json::admin::{
    AccountBody, AccountPage, EventAnswer, IssuedBody, KeyBody, KeyPage, Kind, OverrideBody, State, TierBody, TierList,
    UsageResetAnswer,
};
use tollgate_core::text::{has_hidden, is_hidden};

use crate::escape;

/// A response that can be shown as text.
pub(super) trait PlainText: DeserializeOwned {
    fn show(&self) -> String;
}

/// The text for a response with a `T`.
pub(super) fn shown<T: PlainText>(response: &str) -> String {
    // The response of a node of another version may not be parsed; then it is shown unchanged.
    serde_json::from_str(response).map_or_else(|_| response.to_owned(), |response: T| response.show())
}

/// The text for a response without a body.
pub(super) fn deleted(_: &str) -> String {
    "deleted".to_owned()
}

impl PlainText for AccountBody {
    fn show(&self) -> String {
        let balances = self.balances.iter().map(|(currency, sum)| format!("{currency} {sum}"));
        let rows = [
            ("account", self.id.clone()),
            ("domain", self.domain.clone()),
            ("tier", self.tier.clone()),
            ("balances", balances.collect::<Vec<_>>().join(", ")),
        ];
        let rest = [
            ("valid keys", self.active_keys.to_string()),
            ("version", self.version.to_string()),
            ("created", optional(self.created_at.as_deref())),
            ("changed", optional(self.changed_at.as_deref())),
            ("read only", read_only(self.read_only)),
        ];
        pairs(rows.into_iter().chain(overrides(&self.overrides)).chain(rest))
    }
}

impl PlainText for AccountPage {
    fn show(&self) -> String {
        let row = |account: &AccountBody| {
            let (keys, overrides) = (account.active_keys.to_string(), account.overrides.len().to_string());
            vec![account.id.clone(), account.tier.clone(), keys, overrides, optional(account.changed_at.as_deref())]
        };
        let headers = ["ACCOUNT", "TIER", "VALID KEYS", "OVERRIDES", "CHANGED"];
        let unreadable = self.unreadable.iter().map(|id| vec![id.clone(), "(its record cannot be read)".to_owned()]);
        table(&headers, self.accounts.iter().map(row).chain(unreadable), self.next_cursor.as_deref())
    }
}

impl PlainText for UsageResetAnswer {
    fn show(&self) -> String {
        pairs([("counters removed", self.counters.to_string()), ("quotas", self.quotas.join(", "))])
    }
}

impl PlainText for KeyBody {
    fn show(&self) -> String {
        let rows = [
            ("key", self.id.clone()),
            ("account", self.account.clone()),
            ("domain", self.domain.clone()),
            ("kind", kind(self.kind).to_owned()),
            ("state", state(self.state).to_owned()),
            ("prefix", self.prefix.clone()),
            ("description", self.description.clone()),
        ];
        let rest = [
            ("created", optional(self.created_at.as_deref())),
            ("expires", optional(self.expires_at.as_deref())),
            ("revoked", optional(self.revoked_at.as_deref())),
            ("rotated", optional(self.rotated_at.as_deref())),
            ("old secret until", optional(self.previous_good_until.as_deref())),
            ("read only", read_only(self.read_only)),
        ];
        pairs(rows.into_iter().chain(overrides(&self.overrides)).chain(rest))
    }
}

impl PlainText for KeyPage {
    fn show(&self) -> String {
        let row = |key: &KeyBody| {
            let (kind, state) = (kind(key.kind).to_owned(), state(key.state).to_owned());
            vec![
                key.id.clone(),
                kind,
                state,
                key.prefix.clone(),
                optional(key.expires_at.as_deref()),
                key.description.clone(),
            ]
        };
        let headers = ["KEY", "KIND", "STATE", "PREFIX", "EXPIRES", "DESCRIPTION"];
        table(&headers, self.keys.iter().map(row), self.next_cursor.as_deref())
    }
}

impl PlainText for IssuedBody {
    fn show(&self) -> String {
        let secret = pairs([("secret", self.secret.clone())]);
        format!("{secret}\n{}\nThe secret is not shown again.", self.key.show())
    }
}

impl PlainText for EventAnswer {
    fn show(&self) -> String {
        let text = match (&self.promoted, self.repeated) {
            (_, true) => "The event was recorded before. Nothing changed.".to_owned(),
            (Some(moved), false) => plain(&format!("The account moved from {} to {}.", moved.from, moved.to)),
            (None, false) => "The event was recorded. The account stays on its tier.".to_owned(),
        };
        self.account.as_ref().map_or(text.clone(), |account| format!("{text}\n{}", account.show()))
    }
}

impl PlainText for TierList {
    fn show(&self) -> String {
        let row = |tier: &TierBody| {
            let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
            let promotions = tier.promotions.iter().map(|promotion| format!("{} to {}", promotion.on, promotion.to));
            let priority = tier.priority.map(|priority| priority.to_string()).unwrap_or_default();
            let promotions = promotions.collect::<Vec<_>>().join(", ");
            vec![tier.name.clone(), yes(tier.default), yes(tier.is_charged), priority, promotions]
        };
        table(&["TIER", "DEFAULT", "CHARGED", "PRIORITY", "PROMOTIONS"], self.tiers.iter().map(row), None)
    }
}

fn optional(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}

fn read_only(is: bool) -> String {
    if is { "defined in the policy file".to_owned() } else { String::new() }
}

const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Inference => "inference",
        Kind::Admin => "admin",
    }
}

const fn state(state: State) -> &'static str {
    match state {
        State::Active => "active",
        State::Expired => "expired",
        State::Revoked => "revoked",
    }
}

fn overrides(overrides: &IndexMap<String, OverrideBody>) -> impl Iterator<Item = (&'static str, String)> {
    overrides.iter().map(|(name, over)| {
        let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let text = |value: &Value| match value {
            Value::Array(all) => all.iter().map(word).collect::<Vec<_>>().join(", "),
            value => word(value),
        };
        let mut line = format!("{name}: {} {}", text(&over.limit), text(&over.unit));
        let optional = [("per", over.per.as_ref()), ("of", over.resource.as_ref()), ("in scope", over.scope.as_ref())];
        for (name, value) in optional {
            line += &value.map(|value| format!(" {name} {}", text(value))).unwrap_or_default();
        }
        line += &over.expires_at.as_ref().map(|end| format!(", until {end}")).unwrap_or_default();
        ("override", line)
    })
}

/// One line for each name that has a value.
fn pairs(rows: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let rows = rows.into_iter().filter(|(_, value)| !value.is_empty());
    rows.map(|(name, value)| format!("{name:16}  {}", plain(&value))).collect::<Vec<_>>().join("\n")
}

/// A table with column headers, and the argument for the next page, if there is one.
fn table(headers: &[&str], rows: impl Iterator<Item = Vec<String>>, next: Option<&str>) -> String {
    let headers = headers.iter().map(|head| (*head).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(headers)
        .chain(rows)
        .map(|row: Vec<String>| {
            row.iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { plain(cell) }).collect()
        })
        .collect();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let line = |row: &Vec<String>| {
        let cells =
            row.iter().enumerate().map(|(column, cell)| format!("{cell:0$}", width(column).unwrap_or_default()));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    lines.extend(next.map(|next| format!("Next page: --cursor={}", quoted(next))));
    lines.join("\n")
}

/// On one line, with invisible characters and terminal commands escaped.
fn plain(text: &str) -> String {
    escape::line(text).into_owned()
}

/// Quotes the text as one word for a shell; text with hidden characters in the way of bash, ksh and zsh.
fn quoted(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '@');
    if text.chars().all(safe) {
        return text.to_owned();
    }
    if !has_hidden(text) {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    let inside = text.chars().map(|c| match c {
        '\'' | '\\' => format!("\\{c}"),
        c if is_hidden(c) => format!("\\U{:08x}", u32::from(c)),
        c => c.to_string(),
    });
    format!("$'{}'", inside.collect::<String>())
}
