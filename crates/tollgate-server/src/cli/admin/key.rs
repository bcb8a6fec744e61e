//! `tollgate key`.

use clap::{Subcommand, ValueEnum};
use reqwest::Method;
use tollgate_api::json::admin::{IssuedBody, KeyBody, KeyPage, KeyPatchBody, Kind, NewKeyBody, RotationBody};

use super::{ApiRequest, OverrideArgs, Page, Verb, VersionArgs};

/// The kind of a key, as the command line names it.
#[derive(Clone, Copy, ValueEnum)]
pub(in crate::cli) enum KindArg {
    Inference,
    Admin,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Inference => Self::Inference,
            KindArg::Admin => Self::Admin,
        }
    }
}

#[derive(Subcommand)]
pub(in crate::cli) enum KeyVerb {
    /// Create a key and print its secret, which is never shown again
    Create {
        /// The account's id
        account: String,

        /// `inference`: it can call; `admin`: it can also read what concerns the whole account
        #[arg(long, value_enum, default_value_t = KindArg::Inference)]
        kind: KindArg,

        /// Its description
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        description: String,

        /// When it expires, such as 2027-01-31T00:00:00Z [default: never]
        #[arg(long, value_name = "TIME")]
        expires_at: Option<String>,

        #[command(flatten)]
        version: VersionArgs,
    },
    /// List an account's keys, oldest first, one page at a time
    List {
        /// The account's id
        account: String,

        #[command(flatten)]
        page: Page,
    },
    /// Show a key, without its secret
    Show {
        /// The key's id
        key: String,
    },
    /// Change the description of a key
    Describe {
        /// The key's id
        key: String,

        /// Its description
        text: String,

        #[command(flatten)]
        version: VersionArgs,
    },
    /// Change when a key expires
    Expire {
        /// The key's id
        key: String,

        /// When it expires, such as 2027-01-31T00:00:00Z, or `never`; to end it now, use `revoke`
        #[arg(long, value_name = "TIME")]
        at: String,

        #[command(flatten)]
        version: VersionArgs,
    },
    /// Give a key a new secret, and print it; the key keeps its id and its counters
    Rotate {
        /// The key's id
        key: String,

        /// For how many seconds the previous secret stays valid, at most 2592000
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        overlap_s: u64,

        #[command(flatten)]
        version: VersionArgs,
    },
    /// Revoke a key, at once and permanently
    Revoke {
        /// The key's id
        key: String,

        #[command(flatten)]
        version: VersionArgs,
    },
    /// Set an override: a limit for this key alone
    SetOverride {
        /// The key's id
        key: String,

        /// The override's name
        name: String,

        #[command(flatten)]
        limit: Box<OverrideArgs>,

        #[command(flatten)]
        version: VersionArgs,
    },
    /// Clear an override of the key
    ClearOverride {
        /// The key's id
        key: String,

        /// The override's name
        name: String,

        #[command(flatten)]
        version: VersionArgs,
    },
}

impl Verb for KeyVerb {
    fn request(self) -> ApiRequest {
        let resource_path = |key: String| ["keys".to_owned(), key];
        let action_path = |key: String, verb: &str| ["keys".to_owned(), key, verb.to_owned()];
        let override_path = |key: String, name: String| ["keys".to_owned(), key, "overrides".to_owned(), name];
        let keys = |account: String| ["accounts".to_owned(), account, "keys".to_owned()];
        match self {
            Self::Create { account, kind, description, expires_at, version } => {
                let new = NewKeyBody { kind: kind.into(), description, expires_at };
                ApiRequest::new::<IssuedBody>(Method::POST, keys(account)).body(&new).if_version(&version)
            }
            Self::List { account, page } => ApiRequest::get::<KeyPage>(keys(account)).page(page),
            Self::Show { key } => ApiRequest::get::<KeyBody>(resource_path(key)),
            Self::Describe { key, text, version } => {
                let patch = KeyPatchBody { description: Some(text), expires_at: None };
                ApiRequest::new::<KeyBody>(Method::PATCH, resource_path(key)).body(&patch).if_version(&version)
            }
            Self::Expire { key, at, version } => {
                let patch = KeyPatchBody { description: None, expires_at: Some(Some(at).filter(|at| at != "never")) };
                ApiRequest::new::<KeyBody>(Method::PATCH, resource_path(key)).body(&patch).if_version(&version)
            }
            Self::Rotate { key, overlap_s, version } => {
                ApiRequest::new::<IssuedBody>(Method::POST, action_path(key, "rotate"))
                    .body(&RotationBody { overlap_s })
                    .if_version(&version)
            }
            Self::Revoke { key, version } => {
                ApiRequest::new::<KeyBody>(Method::POST, action_path(key, "revoke")).if_version(&version)
            }
            Self::SetOverride { key, name, limit, version } => {
                ApiRequest::new::<KeyBody>(Method::PUT, override_path(key, name))
                    .body(&limit.body())
                    .if_version(&version)
            }
            Self::ClearOverride { key, name, version } => {
                ApiRequest::new::<KeyBody>(Method::DELETE, override_path(key, name)).if_version(&version)
            }
        }
    }
}
