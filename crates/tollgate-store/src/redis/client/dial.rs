//! How connections are made: by the client of its own, or over TLS to a server whose certificate has another name than
//! the URL.

use std::{io, sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, RedisResult,
    aio::{MultiplexedConnection, PubSub},
    io::tcp::socket2::{SockRef, TcpKeepalive},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tollgate_core::store::StoreError;

use super::{RedisConfig, RedisTls};

/// After how much silence a connection is tried.
pub(super) const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);

/// Makes connections.
#[derive(Clone, Default)]
pub(crate) struct Dialer(Option<NamedServer>);

/// The expected server, and the trusted certificates.
#[derive(Clone)]
struct NamedServer {
    name: ServerName<'static>,
    connector: TlsConnector,
}

impl Dialer {
    pub(crate) fn of(config: &RedisConfig) -> Result<Self, StoreError> {
        let tls = config.tls.as_ref().filter(|tls| tls.server_name.is_some());
        Ok(Self(tls.map(NamedServer::of).transpose().map_err(StoreError::Refused)?))
    }

    /// A connection that calls share.
    pub(crate) async fn connect(
        &self,
        info: &ConnectionInfo,
        settings: &AsyncConnectionConfig,
    ) -> RedisResult<MultiplexedConnection> {
        let Some(named) = &self.0 else {
            return Client::open(info.clone())?.get_multiplexed_async_connection_with_config(settings).await;
        };
        let stream = named.stream(info).await?;
        let (connection, driver) =
            MultiplexedConnection::new_with_config(info.redis_settings(), stream, settings.clone()).await?;
        // Ends with the last clone of the connection.
        tokio::spawn(driver);
        Ok(connection)
    }

    /// A connection that receives published messages.
    pub(crate) async fn listen(&self, info: &ConnectionInfo) -> RedisResult<PubSub> {
        match &self.0 {
            None => Client::open(info.clone())?.get_async_pubsub().await,
            Some(named) => PubSub::new(info.redis_settings(), named.stream(info).await?).await,
        }
    }
}

impl NamedServer {
    fn of(tls: &RedisTls) -> Result<Self, String> {
        let name = tls.server_name.clone().unwrap_or_default();
        let name =
            ServerName::try_from(name).map_err(|_| "the name of the server must be a host name or an address")?;
        let unusable = |error: &dyn std::fmt::Display| format!("the certificates for Redis: {error}");
        let mut roots = RootCertStore::empty();
        if let Some(pem) = &tls.ca {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| unusable(&error))?;
                roots.add(certificate).map_err(|error| unusable(&error))?;
            }
        } else {
            // As in the client: certificates that cannot be read are not trusted.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| unusable(&error))?.with_root_certificates(roots);
        let config = match &tls.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| unusable(&error))?;
                let chain = chain.map_err(|error| unusable(&error))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| unusable(&error))?
            }
        };
        Ok(Self { name, connector: TlsConnector::from(Arc::new(config)) })
    }

    async fn stream(&self, info: &ConnectionInfo) -> io::Result<TlsStream<TcpStream>> {
        let ConnectionAddr::TcpTls { host, port, .. } = info.addr() else {
            return Err(io::Error::other("the name of the server goes with TLS only"));
        };
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER))?;
        self.connector.connect(self.name.clone(), stream).await
    }
}
