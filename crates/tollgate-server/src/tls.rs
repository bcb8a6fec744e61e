//! TLS: certificates and keys, which are reloaded when their files change.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio_rustls::TlsAcceptor;
use tollgate_policy::redaction::shown_path;
use tollgate_service::metrics::Metrics;

use crate::{
    files::{self, Failure, MAX_FILE_BYTES, folder_of},
    reload::{Reload, ReloadCell},
};

/// The setting that names the file of the key.
const KEY: &str = "tls-key";
/// The name of certificates in logs and metrics.
const KIND: &str = "certificates";

/// The files of certificates and keys.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// The node's certificate, with its intermediate certificates; PEM.
    pub certificate: PathBuf,
    /// The key of the node's certificate; PEM.
    pub key: PathBuf,
    /// The certificate authorities of clients; PEM. Without them no client certificate is requested.
    pub client_ca: Option<PathBuf>,
}

/// The protocols of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocols {
    /// HTTP/1.1 and HTTP/2.
    Http,
    /// Only HTTP/2, which gRPC requires.
    Http2,
}

/// The current certificates.
pub(crate) struct Tls {
    settings: TlsSettings,
    metrics: Arc<Metrics>,
    configs: ReloadCell<Configs>,
}

struct Configs {
    http: Arc<ServerConfig>,
    http2: Arc<ServerConfig>,
    /// When the certificate expires, in seconds since 1970.
    expires_at_s: i64,
}

impl Tls {
    /// # Errors
    /// All errors in the files, one per line, each with the name of the setting.
    pub(crate) fn load(settings: TlsSettings, metrics: Arc<Metrics>) -> Result<Self, Failure> {
        let configs = read(&settings)?;
        metrics.set_reload_stuck(KIND, false);
        metrics.set_certificate_expiry(configs.expires_at_s);
        Ok(Self { settings, metrics, configs: ReloadCell::new(configs) })
    }

    /// The acceptor for the next connection.
    pub(crate) fn acceptor(&self, protocols: Protocols) -> TlsAcceptor {
        let configs = self.configs.current();
        TlsAcceptor::from(Arc::clone(match protocols {
            Protocols::Http => &configs.http,
            Protocols::Http2 => &configs.http2,
        }))
    }
}

impl Reload for Tls {
    fn what(&self) -> &'static str {
        KIND
    }

    fn folders(&self) -> Vec<PathBuf> {
        self.files().iter().map(|file| folder_of(file)).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let TlsSettings { certificate, key, client_ca } = &self.settings;
        [certificate, key].into_iter().chain(client_ca).cloned().collect()
    }

    fn reload(&self) -> Result<(), Failure> {
        let read = read(&self.settings);
        self.metrics.count_credential_reload(KIND, read.is_ok());
        self.metrics.set_reload_stuck(KIND, read.as_ref().is_err_and(|failure| failure.stuck));
        if let Ok(configs) = &read {
            self.metrics.set_certificate_expiry(configs.expires_at_s);
        }
        self.configs.renew(read)
    }

    fn last_failure(&self) -> Option<Failure> {
        self.configs.last_failure()
    }
}

fn read(settings: &TlsSettings) -> Result<Configs, Failure> {
    let certificates = certificates("tls-cert", &settings.certificate);
    let key = pem(KEY, &settings.key).and_then(|text| {
        PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|_| format!("tls-key: {}: has no private key in PEM", shown_path(&settings.key)).into())
    });
    let roots = settings.client_ca.as_deref().map(roots).transpose();
    let (certificates, key, roots) = match (certificates, key, roots) {
        (Ok(certificates), Ok(key), Ok(roots)) => (certificates, key, roots),
        (certificates, key, roots) => {
            let failures = [certificates.err(), key.err(), roots.err()];
            return Err(Failure::join(failures.into_iter().flatten()));
        }
    };
    let unusable = |error: &dyn std::fmt::Display| format!("tls-cert: {}: {error}", shown_path(&settings.certificate));
    let expires_at_s = certificates
        .first()
        .and_then(|first| x509_parser::parse_x509_certificate(first).ok())
        .map(|(_, first)| first.validity().not_after.timestamp())
        .ok_or_else(|| unusable(&"contains something that is not a certificate"))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?;
    let builder = match roots {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            // A client may send no certificate, and a token instead; a certificate that it sends must be valid.
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| format!("tls-client-ca: {error}"))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let config = builder
        .with_single_cert(certificates, key)
        .map_err(|error| unusable(&format_args!("does not match the key of tls-key: {error}")))?;
    let with_protocols = |protocols: &[&[u8]]| {
        let mut config = config.clone();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    };
    Ok(Configs { http: with_protocols(&[b"h2", b"http/1.1"]), http2: with_protocols(&[b"h2"]), expires_at_s })
}

fn roots(path: &Path) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("tls-client-ca", path)? {
        roots.add(certificate).map_err(|error| format!("tls-client-ca: {}: {error}", shown_path(path)))?;
    }
    Ok(roots)
}

fn certificates(setting: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let text = pem(setting, path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    certificates
        .ok()
        .filter(|certificates| !certificates.is_empty())
        .ok_or_else(|| format!("{setting}: {}: has no certificate in PEM", shown_path(path)).into())
}

fn pem(setting: &str, path: &Path) -> Result<String, Failure> {
    let failure = |error| Failure::of(format_args!("{setting}: {}", shown_path(path)), &error);
    let contents = files::read(path, MAX_FILE_BYTES).map_err(failure)?;
    if contents.open_to_all && setting == KEY {
        let file = shown_path(path);
        tracing::warn!(
            what = KIND,
            file,
            "every user of this machine can read the key of the certificate; restrict its permissions"
        );
    }
    contents.text().map_err(failure)
}
