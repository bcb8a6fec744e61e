//! The format of a policy file: the input of the compiler, as it is written.
//!
//! The JSON Schema is generated from these types and their doc comments. The description of a scalar type completes the
//! sentence "it should be: …" in error messages.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// The JSON Schema of a policy file.
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(PolicyFile);
    schema.insert("title".to_owned(), json!("Tollgate policy"));
    schema.to_value()
}

/// The JSON Schema of one override.
pub(crate) fn override_schema() -> Value {
    schemars::schema_for!(Override).to_value()
}

fn names(of: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{of}") })
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $pattern:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
        #[serde(transparent)]
        #[schemars(extend("pattern" = $pattern, "maxLength" = $max))]
        pub(crate) struct $name(pub(crate) String);
    };
}

pub(crate) mod abuse;
pub(crate) mod accounts;
mod bootstrap;
pub(crate) mod count;
pub(crate) mod dialect;
pub(crate) mod estimates;
pub(crate) mod quota;
pub(crate) mod uploads;

pub(crate) use self::{
    bootstrap::{Account, Bootstrap, Key, Kind},
    quota::{CounterLimit, OnFailure, Quota, Quotas, Scope, Window},
};
pub use self::{dialect::ListingFormat, quota::Override};

text! {
    /// 1 to 63 lower-case letters, digits and hyphens, such as `venice`.
    Domain, r"^[a-z0-9-]+$", 63
}
text! {
    /// Up to 128 characters, none of them a control or invisible character.
    Name, r"^[^\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{DI}]+$", 128
}
text! {
    /// A name of up to 128 characters, none of them a control or invisible character, or a wildcard such as `prompt/*`.
    ResourceName, r"^[^\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{DI}]+$", 128
}
text! {
    /// Up to 32 lower-case letters, digits and underscores, starting with a letter.
    Word, r"^[a-z][a-z0-9_]*$", 32
}
text! {
    /// Up to 16 letters and digits, such as `RPM`.
    Label, r"^[A-Za-z0-9]+$", 16
}
text! {
    /// Up to 1024 characters.
    Note, r"", 1024
}
text! {
    /// A time zone of the IANA database, such as `UTC` or `Europe/Berlin`.
    Zone, r"^[A-Za-z0-9_+/-]+$", 64
}
text! {
    /// `sha256:` and the 64 lower-case hexadecimal digits of the key's SHA-256.
    Hash, r"^sha256:[0-9a-f]{64}$", 71
}
text! {
    /// A time such as `2027-01-31T00:00:00Z`.
    Time, r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9:.]+(Z|z|[+-][0-9]{2}:[0-9]{2})$", 40
}
text! {
    /// `second`, `minute`, `hour`, `day`, `week`, or a length such as `30s`, `12h` or `7d` (units: ms, s, m, h, d, w).
    Length, r"^(second|minute|hour|day|week|[1-9][0-9]{0,9}(ms|s|m|h|d|w))$", 16
}

text! {
    /// A percentage from 0% to 100%, such as `10%`.
    Percentage, r"^(100|[1-9]?[0-9])%$", 4
}

impl Percentage {
    /// The number; 0 for a text that the schema refuses.
    pub(crate) fn percent(&self) -> u8 {
        self.0.trim_end_matches('%').parse().unwrap_or_default()
    }
}

text! {
    /// Text of up to 512 characters, none of them a control or invisible character.
    Message, r"^[^\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{DI}]+$", 512
}
text! {
    /// `4xx`, a status such as `429`, or a range such as `500-599`.
    StatusText, r"^([1-5]xx|[1-5][0-9]{2}|[1-5][0-9]{2}-[1-5][0-9]{2})$", 7
}

impl Length {
    /// The length in milliseconds; 0, which no window has, for a text that the schema refuses.
    pub(crate) fn ms(&self) -> u64 {
        let at = self.0.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.0.len());
        let (count, unit) = self.0.split_at(at);
        let unit_ms = match unit {
            "ms" => 1,
            "s" | "second" => 1_000,
            "m" | "minute" => 60_000,
            "h" | "hour" => 3_600_000,
            "d" | "day" => 86_400_000,
            "w" | "week" => 604_800_000,
            _ => 0,
        };
        let count = if count.is_empty() { Ok(1) } else { count.parse::<u64>() };
        count.map_or(0, |count| count.saturating_mul(unit_ms))
    }
}

/// One platform's limits: its tiers, its classes of resources, their quotas, and its callers.
///
/// For a call, two lists of rules apply separately: quotas whose scope contains `api_key`, and all others. For each of
/// the two, the first rule with such a quota wins, in this order: the tier's rule for the resource (by name, then by
/// the longest wildcard), for its provider class, for its class; the resource's own quotas; those of its provider
/// class; those of its class; the tier's default. An empty list of quotas applies to both and means: not limited. The
/// quotas of `also` of the tier, the resource and its classes apply in addition, whatever rule wins. Overrides of the
/// account and the key then replace limits or add quotas.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// The version of this format: 1.
    #[schemars(range(min = 1, max = 1))]
    #[expect(dead_code, reason = "the schema checks it; there is only one version")]
    pub(crate) version: u32,
    /// The name that callers choose this policy by.
    pub(crate) domain: Domain,
    /// Units that are counted besides `requests`, such as `tokens`.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub(crate) units: Vec<Word>,
    /// The scopes of quotas and overrides that name none.
    #[serde(default)]
    pub(crate) scopes: DefaultScopes,
    /// Size classes and types of resources.
    #[serde(default)]
    #[schemars(extend("propertyNames" = names("Name"), "maxProperties" = 256))]
    pub(crate) classes: IndexMap<String, Class>,
    /// Classes of upstream providers. They go before size classes and types.
    #[serde(default)]
    #[schemars(extend("propertyNames" = names("Name"), "maxProperties" = 256))]
    pub(crate) provider_classes: IndexMap<String, Class>,
    /// The resources, by name, or by a wildcard with a trailing `*`. A name has precedence over the longest wildcard.
    #[serde(default)]
    #[schemars(extend("propertyNames" = names("ResourceName"), "maxProperties" = 5000))]
    pub(crate) resources: IndexMap<String, Resource>,
    /// The treatment of resources that are not listed. They all share one counter, unless `counter` says otherwise.
    #[serde(default)]
    pub(crate) unknown_resources: UnknownResources,
    /// The tiers of accounts.
    #[schemars(extend("propertyNames" = names("Name"), "minProperties" = 1, "maxProperties" = 64))]
    pub(crate) tiers: IndexMap<String, Tier>,
    /// The tier of a new account.
    pub(crate) default_tier: Name,
    /// Whether every quota and abuse rule of the policy is a shadow: it counts and reports the calls that it would
    /// refuse, and refuses none.
    #[serde(default)]
    pub(crate) shadow: bool,
    /// The format of `/api_keys/rate_limits`. Unless given, that of the policy's dialect: `venice` with the built-in
    /// dialect of this name, `plain` with every other, or the `listing` of a dialect of the platform's own.
    #[serde(default)]
    #[schemars(with = "dialect::ListingFormat")]
    pub(crate) self_service: Option<ListingFormat>,
    /// The behaviour of quotas without `on_failure` while the store cannot answer.
    #[serde(default)]
    pub(crate) on_failure: OnFailure,
    /// The blocks of callers that fail too often.
    #[serde(default)]
    pub(crate) abuse: abuse::Abuse,
    /// The dialect that answers are rendered in, unless a call chooses another: one of `dialects`, or a built-in
    /// one. `ietf` unless given.
    #[serde(default)]
    #[schemars(with = "dialect::DialectName")]
    pub(crate) dialect: Option<dialect::DialectName>,
    /// How much longer than necessary the wait in a rendered answer may be, at random, so that refused callers do not
    /// return together. Nothing unless given.
    #[serde(default)]
    #[schemars(with = "Percentage")]
    pub(crate) retry_jitter: Option<Percentage>,
    /// The platform's own dialects. A dialect with the name of a built-in one replaces it here.
    #[serde(default)]
    #[schemars(extend("propertyNames" = names("DialectName"), "maxProperties" = 32))]
    pub(crate) dialects: IndexMap<String, dialect::Table>,
    /// How large uploads may be.
    #[serde(default)]
    pub(crate) uploads: uploads::Uploads,
    /// The amounts that reservations take of a unit, by unit, if neither the call names it nor the resource or its
    /// classes have an estimate of it.
    #[serde(default)]
    pub(crate) estimates: estimates::Estimates,
    /// Events that move accounts from one tier to another, such as payments.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub(crate) promotions: Vec<accounts::Promotion>,
    /// The limits of API keys.
    #[serde(default)]
    pub(crate) keys: accounts::Keys,
    /// The accounts and keys that the file brings along.
    #[serde(default)]
    pub(crate) bootstrap: Bootstrap,
}

/// The scopes of quotas and overrides that name none.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DefaultScopes {
    /// For quotas; that of `account` unless given. `[api_key, resource]` limits every key separately.
    #[serde(default)]
    #[schemars(with = "Scope")]
    pub(crate) quotas: Option<Scope>,
    /// For overrides of accounts. `[account, resource]` unless given.
    #[serde(default)]
    #[schemars(with = "Scope")]
    pub(crate) account: Option<Scope>,
    /// For overrides of keys. `[api_key, resource]` unless given.
    #[serde(default)]
    #[schemars(with = "Scope")]
    pub(crate) key: Option<Scope>,
}

/// A class of resources.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Class {
    /// A note for the reader.
    #[serde(default)]
    #[schemars(with = "Note")]
    #[expect(dead_code, reason = "for the reader of the file")]
    pub(crate) description: Option<Note>,
    /// The quotas of every resource of the class.
    #[serde(default)]
    #[schemars(with = "Quotas")]
    pub(crate) quotas: Option<Quotas>,
    /// Quotas that apply in addition, whatever rule wins: for every resource of the class.
    #[serde(default)]
    #[schemars(with = "Quotas")]
    pub(crate) also: Option<Quotas>,
    /// The amounts that reservations of the class take of a unit, by unit, if the call does not name it.
    #[serde(default)]
    pub(crate) estimates: estimates::Estimates,
}

/// A resource, or all that match a wildcard.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resource {
    /// Its size class or type, from `classes`.
    #[serde(default)]
    #[schemars(with = "Name")]
    pub(crate) class: Option<Name>,
    /// The class of its upstream provider, from `provider_classes`.
    #[serde(default)]
    #[schemars(with = "Name")]
    pub(crate) provider_class: Option<Name>,
    /// Its own quotas. They go before those of its classes.
    #[serde(default)]
    #[schemars(with = "Quotas")]
    pub(crate) quotas: Option<Quotas>,
    /// Quotas that apply in addition, whatever rule wins: such as a pool of the resource's capacity.
    #[serde(default)]
    #[schemars(with = "Quotas")]
    pub(crate) also: Option<Quotas>,
    /// Whether the matches of a wildcard share one counter (the default), or each have their own.
    #[serde(default)]
    pub(crate) counter: CounterSharing,
    /// The amounts that its reservations take of a unit, by unit, if the call does not name it; for other units those
    /// of its provider class, then of its class.
    #[serde(default)]
    pub(crate) estimates: estimates::Estimates,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Counter")]
pub(crate) enum CounterSharing {
    #[default]
    Shared,
    #[serde(rename = "each")]
    PerName,
}

/// `refuse`, or how they are treated, such as `{class: text/small}`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum UnknownResources {
    Refuse(Refuse),
    Resource(Resource),
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Refuse {
    Refuse,
}

impl Default for UnknownResources {
    fn default() -> Self {
        Self::Refuse(Refuse::Refuse)
    }
}

impl UnknownResources {
    /// The resource that unknown names are treated as; `None` if they are refused.
    pub(crate) fn resource(&self) -> Option<&Resource> {
        match self {
            Self::Refuse(_) => None,
            Self::Resource(resource) => Some(resource),
        }
    }
}

/// A tier of accounts.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tier {
    /// Whether its calls are paid for.
    pub(crate) is_charged: bool,
    /// How important its calls are.
    #[serde(default)]
    #[schemars(with = "Priority")]
    pub(crate) priority: Option<Priority>,
    /// The tier's default, where no other rule applies.
    #[serde(default)]
    #[schemars(with = "Quotas")]
    pub(crate) quotas: Option<Quotas>,
    /// Quotas that apply in addition, whatever rule wins: for every call of the tier, such as a monthly budget.
    #[serde(default)]
    #[schemars(with = "Quotas")]
    pub(crate) also: Option<Quotas>,
    /// The tier's own rules for resources, by name or wildcard.
    #[serde(default)]
    #[schemars(extend("propertyNames" = names("ResourceName"), "maxProperties" = 5000))]
    pub(crate) resources: IndexMap<String, Rule>,
    /// The tier's own rules for classes.
    #[serde(default)]
    #[schemars(extend("propertyNames" = names("Name"), "maxProperties" = 256))]
    pub(crate) classes: IndexMap<String, Rule>,
    /// The tier's own rules for provider classes.
    #[serde(default)]
    #[schemars(extend("propertyNames" = names("Name"), "maxProperties" = 256))]
    pub(crate) provider_classes: IndexMap<String, Rule>,
}

/// From 1 (low) to 4 (critical).
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct Priority(#[schemars(range(min = 1, max = 4))] pub(crate) u8);

/// A rule of a tier.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// The quotas.
    pub(crate) quotas: Quotas,
}
