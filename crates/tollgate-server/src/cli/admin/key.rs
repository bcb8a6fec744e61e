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
        upon: VersionArgs,
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
        upon: VersionArgs,
    },
    /// Change when a key expires
    Expire {
        /// The key's id
        key: String,

        /// When it expires, such as 2027-01-31T00:00:00Z, or `never`; to end it now, use `revoke`
        #[arg(long, value_name = "TIME")]
        at: String,

        #[command(flatten)]
        upon: VersionArgs,
    },
    /// Give a key a new secret, and print it; the key keeps its id and its counters
    Rotate {
        /// The key's id
        key: String,

        /// For how many seconds the previous secret stays valid, at most 2592000
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        overlap_s: u64,

        #[command(flatten)]
        upon: VersionArgs,
    },
    /// Revoke a key, at once and permanently
    Revoke {
        /// The key's id
        key: String,

        #[command(flatten)]
        upon: VersionArgs,
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
        upon: VersionArgs,
    },
    /// Clear an override of the key
    ClearOverride {
        /// The key's id
        key: String,

        /// The override's name
        name: String,

        #[command(flatten)]
        upon: VersionArgs,
    },
}

impl Verb for KeyVerb {
    fn ask(self) -> ApiRequest {
        let of = |key: String| ["keys".to_owned(), key];
        let to = |key: String, verb: &str| ["keys".to_owned(), key, verb.to_owned()];
        let over = |key: String, name: String| ["keys".to_owned(), key, "overrides".to_owned(), name];
        let keys = |account: String| ["accounts".to_owned(), account, "keys".to_owned()];
        match self {
            Self::Create { account, kind, description, expires_at, upon } => {
                let new = NewKeyBody { kind: kind.into(), description, expires_at };
                ApiRequest::new::<IssuedBody>(Method::POST, keys(account)).body(&new).upon(&upon)
            }
            Self::List { account, page } => ApiRequest::get::<KeyPage>(keys(account)).page(page),
            Self::Show { key } => ApiRequest::get::<KeyBody>(of(key)),
            Self::Describe { key, text, upon } => {
                let patch = KeyPatchBody { description: Some(text), expires_at: None };
                ApiRequest::new::<KeyBody>(Method::PATCH, of(key)).body(&patch).upon(&upon)
            }
            Self::Expire { key, at, upon } => {
                let patch = KeyPatchBody { description: None, expires_at: Some(Some(at).filter(|at| at != "never")) };
                ApiRequest::new::<KeyBody>(Method::PATCH, of(key)).body(&patch).upon(&upon)
            }
            Self::Rotate { key, overlap_s, upon } => ApiRequest::new::<IssuedBody>(Method::POST, to(key, "rotate"))
                .body(&RotationBody { overlap_s })
                .upon(&upon),
            Self::Revoke { key, upon } => ApiRequest::new::<KeyBody>(Method::POST, to(key, "revoke")).upon(&upon),
            Self::SetOverride { key, name, limit, upon } => {
                ApiRequest::new::<KeyBody>(Method::PUT, over(key, name)).body(&limit.body()).upon(&upon)
            }
            Self::ClearOverride { key, name, upon } => {
                ApiRequest::new::<KeyBody>(Method::DELETE, over(key, name)).upon(&upon)
            }
        }
    }
}
