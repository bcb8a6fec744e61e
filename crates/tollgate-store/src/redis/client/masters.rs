//! The current masters, for code that examines the servers directly.

use std::time::Duration;

use futures_util::future::join_all;
use redis::ConnectionInfo;
use tokio::time::timeout;
use tollgate_core::store::StoreError;

use super::{RedisConfig, cluster, dial::Dialer, sentinel, target, target::Target};
use crate::redis::verdict::Severity;

/// Findings about the URL as a whole, and its masters.
pub(super) type Masters = Result<(Vec<(Severity, String)>, Vec<ConnectionInfo>), StoreError>;

/// How long the sentinels, or one node of a cluster, may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The masters of `config`, and findings about how they were found.
pub(crate) async fn masters(config: &RedisConfig) -> Masters {
    match Target::of(config)? {
        Target::Single(info) => Ok((Vec::new(), vec![info])),
        Target::Sentinel { sentinels, service, master } => {
            let mut said = Vec::new();
            let mut answering = 0;
            let asked = sentinels.iter().map(|sentinel| {
                timeout(PATIENCE, async {
                    let mut connection =
                        redis::Client::open(sentinel.clone())?.get_multiplexed_async_connection().await?;
                    redis::cmd("PING").query_async::<redis::Value>(&mut connection).await
                })
            });
            for (sentinel, answer) in sentinels.iter().zip(join_all(asked).await) {
                match answer {
                    Ok(Ok(_)) => answering += 1,
                    Ok(Err(error)) => said.push((Severity::Warning, format!("sentinel {}: {error}", sentinel.addr()))),
                    Err(_) => said.push((Severity::Warning, format!("sentinel {}: no answer", sentinel.addr()))),
                }
            }
            let verdict = if sentinels.len() >= 3 { Severity::Ok } else { Severity::Warning };
            let count =
                format!("sentinels: {answering} of {} answer; name three, as a majority decides", sentinels.len());
            said.push((verdict, count));
            let certificates = target::certificates(config.tls.as_ref());
            let mut client = sentinel::client(&sentinels, &service, &master, certificates)
                .map_err(|error| StoreError::Refused(format!("the Redis URL: {error}")))?;
            let found = timeout(PATIENCE, client.async_get_client())
                .await
                .map_err(|_| StoreError::Unreachable("the sentinels do not answer".into()))?
                .map_err(|error| StoreError::Unreachable(format!("the sentinels name no master: {error}")))?;
            let info = found.get_connection_info().clone().set_redis_settings(master.redis_settings().clone());
            Ok((said, vec![info]))
        }
        Target::Cluster(seeds) => {
            let (info, ranges) =
                cluster::ask_seeds(&seeds, &Dialer::of(config)?, PATIENCE).await.map_err(StoreError::from)?;
            let served: usize = ranges.iter().map(|(from, to, ..)| to - from + 1).sum();
            let mut masters: Vec<ConnectionInfo> = Vec::new();
            for (_, _, host, port) in &ranges {
                let found = target::elsewhere(&info, host, *port);
                if masters.iter().all(|known| known.addr() != found.addr()) {
                    masters.push(found);
                }
            }
            let said = if served == cluster::SLOTS {
                (Severity::Ok, format!("cluster: all slots are served, by {} masters", masters.len()))
            } else {
                let missing = cluster::SLOTS - served;
                (Severity::Error, format!("cluster: {missing} slots are not served; see redis-cli --cluster check"))
            };
            Ok((vec![said], masters))
        }
    }
}
