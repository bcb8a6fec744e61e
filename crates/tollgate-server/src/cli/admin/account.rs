//! `tollgate account`.

use clap::Subcommand;
use indexmap::IndexMap;
use reqwest::Method;
use tollgate_api::json::admin::{
    AccountBody, AccountPage, AccountPatchBody, EventAnswer, EventBody, NewAccountBody, UsageResetAnswer,
    UsageResetBody,
};

use super::{ApiRequest, OverrideArgs, Page, Verb, VersionArgs, people};

#[derive(Subcommand)]
pub(in crate::cli) enum AccountVerb {
    /// Create an account
    Create {
        /// The account's id
        account: String,

        /// Its tier [default: the policy's default tier]
        #[arg(long)]
        tier: Option<String>,

        /// Its balance, such as `USD=12.5`; only shown, never used for decisions
        #[arg(long = "balance", value_name = "CURRENCY=SUM", value_parser = balance)]
        balances: Vec<(String, f64)>,
    },
    /// List accounts in the order of their ids, one page at a time
    List(#[command(flatten)] Page),
    /// Show an account
    Show {
        /// The account's id
        account: String,
    },
    /// Change an account's tier or balances
    Set {
        /// The account's id
        account: String,

        /// The tier
        #[arg(long, required_unless_present = "balances")]
        tier: Option<String>,

        /// Its balance, such as `USD=12.5`; balances that are not given are removed
        #[arg(long = "balance", value_name = "CURRENCY=SUM", value_parser = balance)]
        balances: Vec<(String, f64)>,

        #[command(flatten)]
        version: VersionArgs,
    },
    /// Delete an account and its keys
    Delete {
        /// The account's id
        account: String,

        #[command(flatten)]
        version: VersionArgs,
    },
    /// Set an override: a limit for this account alone
    SetOverride {
        /// The account's id
        account: String,

        /// The override's name
        name: String,

        #[command(flatten)]
        limit: Box<OverrideArgs>,

        #[command(flatten)]
        version: VersionArgs,
    },
    /// Clear an override of the account
    ClearOverride {
        /// The account's id
        account: String,

        /// The override's name
        name: String,

        #[command(flatten)]
        version: VersionArgs,
    },
    /// Remove the counters of an account, whatever they contain: of its quotas, slots and blocks, and of its keys
    ResetUsage {
        /// The account's id
        account: String,

        /// Only counters in the scope of this quota or abuse rule (other quotas may share them)
        #[arg(long, value_name = "NAME")]
        quota: Option<String>,
    },
    /// Report an event of an account, such as a payment, which may move it to another tier
    Event {
        /// The account's id
        account: String,

        /// The event's id, such as that of the payment; a repeated event changes nothing
        #[arg(long)]
        id: String,

        /// The event's type, as in `promotions` of the policy
        #[arg(long = "type", value_name = "TYPE")]
        kind: String,
    },
}

fn balance(text: &str) -> Result<(String, f64), String> {
    let parsed = text.split_once('=').and_then(|(currency, sum)| Some((currency.to_owned(), sum.parse().ok()?)));
    parsed.filter(|(_, sum): &(_, f64)| sum.is_finite()).ok_or_else(|| "must be like USD=12.5".to_owned())
}

impl Verb for AccountVerb {
    fn request(self) -> ApiRequest {
        let resource_path = |account: String| ["accounts".to_owned(), account];
        let override_path =
            |account: String, name: String| ["accounts".to_owned(), account, "overrides".to_owned(), name];
        match self {
            Self::Create { account, tier, balances } => {
                let new = NewAccountBody { id: account, tier, balances: balances.into_iter().collect() };
                ApiRequest::new::<AccountBody>(Method::POST, ["accounts"]).body(&new)
            }
            Self::List(page) => ApiRequest::get::<AccountPage>(["accounts"]).page(page),
            Self::Show { account } => ApiRequest::get::<AccountBody>(resource_path(account)),
            Self::Set { account, tier, balances, version } => {
                let balances = (!balances.is_empty()).then(|| balances.into_iter().collect::<IndexMap<_, _>>());
                let patch = AccountPatchBody { tier, balances };
                ApiRequest::new::<AccountBody>(Method::PATCH, resource_path(account)).body(&patch).if_version(&version)
            }
            Self::Delete { account, version } => {
                let request =
                    ApiRequest::new::<AccountBody>(Method::DELETE, resource_path(account)).if_version(&version);
                ApiRequest { show: people::deleted, ..request }
            }
            Self::SetOverride { account, name, limit, version } => {
                ApiRequest::new::<AccountBody>(Method::PUT, override_path(account, name))
                    .body(&limit.body())
                    .if_version(&version)
            }
            Self::ClearOverride { account, name, version } => {
                ApiRequest::new::<AccountBody>(Method::DELETE, override_path(account, name)).if_version(&version)
            }
            Self::ResetUsage { account, quota } => {
                let path = ["accounts".to_owned(), account, "reset_usage".to_owned()];
                ApiRequest::new::<UsageResetAnswer>(Method::POST, path).body(&UsageResetBody { quota })
            }
            Self::Event { account, id, kind } => {
                let path = ["accounts".to_owned(), account, "events".to_owned()];
                ApiRequest::new::<EventAnswer>(Method::POST, path).body(&EventBody { id, r#type: kind })
            }
        }
    }
}
