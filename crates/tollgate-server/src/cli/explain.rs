//! `tollgate explain`: explains the quotas of a call, from a policy file.

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;
use tollgate_policy::{
    Caller, CallerKey, Mistake, Override, Place, Policy, QuotaLevel,
    file::{check_override, read_override, read_yaml},
};

use crate::policies;

/// The call to explain.
#[derive(Args)]
pub(super) struct ExplainArgs {
    /// The policy file
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,

    /// The caller's tier [default: the policy's default tier]
    #[arg(long, value_name = "NAME")]
    tier: Option<String>,

    /// The resource that is called
    #[arg(long, value_name = "NAME")]
    resource: String,

    /// An override of the account, as policy files write it: `{unit: requests, per: minute, limit: 100}`
    #[arg(long = "account-override", value_name = "OVERRIDE", value_parser = parse_override)]
    account_overrides: Vec<Value>,

    /// An override of the API key
    #[arg(long = "key-override", value_name = "OVERRIDE", value_parser = parse_override)]
    key_overrides: Vec<Value>,

    /// Explain a call that names an account and no API key
    #[arg(long, conflicts_with = "key_overrides")]
    without_key: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn parse_override(text: &str) -> Result<Value, String> {
    read_yaml(text)
}

impl ExplainArgs {
    /// The explanation, or the errors.
    pub(super) fn run(self) -> Result<String, String> {
        let loaded = policies::load(&self.policy).map_err(|errors| errors.to_string())?;
        let policy = &*loaded.policy;
        let tier = match &self.tier {
            None => policy.default_tier(),
            Some(name) => policy.tier_named(name).ok_or_else(|| {
                let names: Vec<&str> = policy.tiers().iter().map(|tier| &*tier.name).collect();
                format!("tier: there is no tier {name:?}; there is: {}", names.join(", "))
            })?,
        };
        let account_overrides = overrides(policy, &self.account_overrides, QuotaLevel::Account, "account-override")?;
        let key_overrides = overrides(policy, &self.key_overrides, QuotaLevel::Key, "key-override")?;
        let key = CallerKey { id: "", overrides: &key_overrides };
        let caller = Caller {
            partition: policy.account_partition(""),
            tier,
            account_overrides: &account_overrides,
            key: (!self.without_key).then_some(key),
        };
        let explanation = policy.explain(&caller, &self.resource).map_err(|error| error.to_string())?;
        if self.json {
            return serde_json::to_string_pretty(&explanation).map_err(|error| error.to_string());
        }
        Ok(explanation.to_string())
    }
}

/// Compiles the overrides; or returns all errors in them, each after the name of the option.
fn overrides(policy: &Policy, definitions: &[Value], level: QuotaLevel, option: &str) -> Result<Vec<Override>, String> {
    let root = Place::root().at(option);
    let mut errors = Vec::new();
    let mut parsed = Vec::with_capacity(definitions.len());
    for (index, value) in definitions.iter().enumerate() {
        let mistakes = check_override(value).into_iter();
        errors.extend(mistakes.map(|Mistake { place, message }| format!("{}: {message}", root.at(index).join(&place))));
        parsed.extend(read_override(value));
    }
    if errors.is_empty() {
        match policy.overrides(&parsed, level, &root) {
            Ok(overrides) => return Ok(overrides),
            Err(policy_errors) => errors.extend(policy_errors.iter().map(ToString::to_string)),
        }
    }
    Err(errors.join("\n"))
}
