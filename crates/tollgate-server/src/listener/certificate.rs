//! The identity in a client certificate. TLS has already verified the certificate.

use serde::Deserialize;
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

/// A name in a certificate. Names of different kinds are never equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum CertificateName {
    /// A URI of the subject alternative names, such as `spiffe://…`.
    Uri(String),
    /// A DNS name of the subject alternative names.
    Dns(String),
    /// The common name of the subject, if there are no alternative names.
    CommonName(String),
}

impl CertificateName {
    /// The name in canonical form: DNS names in lower case.
    pub(crate) fn canonical(self) -> Self {
        match self {
            Self::Dns(name) => Self::Dns(name.to_ascii_lowercase()),
            other => other,
        }
    }

    pub(crate) fn text(&self) -> &str {
        let (Self::Uri(text) | Self::Dns(text) | Self::CommonName(text)) = self;
        text
    }
}

/// The names of a DER certificate: its URIs, then its DNS names; without alternative names, the common name.
pub(crate) fn certificate_names(certificate: &[u8]) -> Vec<CertificateName> {
    let Ok((_, certificate)) = parse_x509_certificate(certificate) else { return Vec::new() };
    let Ok(alternative) = certificate.subject_alternative_name() else { return Vec::new() };
    let Some(alternative) = alternative else {
        let mut common = certificate.subject().iter_common_name();
        let only = common.next().filter(|_| common.next().is_none());
        let name = only.and_then(|name| name.as_str().ok());
        return name.map(|name| CertificateName::CommonName(name.to_owned())).into_iter().collect();
    };
    let names_of_kind =
        |kind: fn(&GeneralName<'_>) -> Option<CertificateName>| alternative.value.general_names.iter().filter_map(kind);
    let uris = names_of_kind(|name| match name {
        GeneralName::URI(uri) => Some(CertificateName::Uri((*uri).to_owned())),
        _ => None,
    });
    let dns = names_of_kind(|name| match name {
        GeneralName::DNSName(dns) => Some(CertificateName::Dns((*dns).to_owned()).canonical()),
        _ => None,
    });
    uris.chain(dns).collect()
}
