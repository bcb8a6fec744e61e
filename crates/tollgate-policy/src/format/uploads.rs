//! The limits of uploads, as policy files write them.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Length, ResourceName};

text! {
    /// `image`, `audio`, `video`, or a media type such as `audio/wav`.
    Media, r"^(image|audio|video|[a-z]+/[a-z0-9.+-]+)$", 64
}
text! {
    /// A size such as `10MB` (units: B, KB, MB, GB).
    Size, r"^[1-9][0-9]{0,5}(B|KB|MB|GB)$", 8
}

/// How large uploads may be.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Uploads {
    /// The number of bytes of a `KB`; an `MB` has as many KB, a `GB` as many MB.
    #[serde(default)]
    pub kilobyte: Kilobyte,
    /// The limits. For an upload's size the most specific limit with a size counts: a resource has precedence over a
    /// wildcard and a wildcard over none, then a media type over `audio`. The same holds for its length.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub limits: Vec<UploadLimit>,
}

/// 1024 (the default) or 1000.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct Kilobyte(#[schemars(extend("enum" = [1000, 1024]))] pub u64);

impl Default for Kilobyte {
    fn default() -> Self {
        Self(1024)
    }
}

/// A limit of uploads.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UploadLimit {
    /// Of which media.
    pub media: Media,
    /// Only for this resource, or for those that match a wildcard.
    #[serde(default)]
    #[schemars(with = "ResourceName")]
    pub resource: Option<ResourceName>,
    /// The largest size.
    #[serde(default)]
    #[schemars(with = "Size")]
    pub size: Option<Size>,
    /// The longest playing time.
    #[serde(default)]
    #[schemars(with = "Length")]
    pub length: Option<Length>,
}
