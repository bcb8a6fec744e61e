//! The policy of most tests.

use std::path::PathBuf;

use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// The secret of the valid key of [`shop`].
pub(crate) const KEY: &str = "sk-integration-good-7f3a91c2d4";

/// The hash of a key in the form of policy files.
pub(crate) fn hash_of(secret: &str) -> String {
    Sha256::digest(secret).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// A small platform. `requests_a_minute` limits `model`; all other limits are as below. The keys are
/// [`KEY`], `sk-integration-revoked` and `sk-integration-expired`.
pub(crate) fn shop(requests_a_minute: u64) -> String {
    format!(
        r#"version: 1
domain: shop
self_service: venice
units: [tokens]
classes:
  text:
    quotas:
      - {{ unit: requests, per: minute, limit: {requests_a_minute} }}
      - {{ unit: tokens, per: minute, limit: 20000 }}
  tiny:
    quotas:
      - {{ unit: requests, per: 10s, limit: 4 }}
      - {{ unit: requests, per: minute, limit: 9 }}
      - {{ unit: tokens, per: minute, limit: 300 }}
resources:
  model: {{ class: text }}
  tiny: {{ class: tiny }}
  burst: {{ quotas: [{{ unit: requests, per: 2s, limit: 50 }}] }}
  bulk: {{ quotas: [{{ unit: requests, per: hour, limit: 1000000 }}, {{ unit: tokens, per: hour, limit: 1000000000 }}] }}
  free: {{ quotas: [] }}
  "prompt/*": {{ class: text }}
tiers:
  paid: {{ is_charged: true }}
default_tier: paid
bootstrap:
  accounts:
    - id: acme
      tier: paid
      keys:
        - {{ id: acme-good, hash: "{good}", kind: inference }}
        - {{ id: acme-revoked, hash: "{revoked}", kind: inference, revoked: true }}
        - {{ id: acme-expired, hash: "{expired}", kind: inference, expires_at: "2001-01-01T00:00:00Z" }}
"#,
        good = hash_of(KEY),
        revoked = hash_of("sk-integration-revoked"),
        expired = hash_of("sk-integration-expired"),
    )
}

/// A temporary folder with `policy` in it, and the path of the file.
pub(crate) fn folder_with(policy: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("policy.yaml");
    std::fs::write(&file, policy).expect("the policy is written");
    (folder, file)
}
