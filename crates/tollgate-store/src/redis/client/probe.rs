//! Whether charges are possible: a write of the node's own on every master, the way calls go.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::Instant;
use tollgate_core::store::{Obstacle, StoreHealth};

use super::{
    RedisClient, Route,
    facts::{Probe, ServerFacts, milliseconds, skew},
    fault::{Failure, Fault},
    node::Node,
};
use crate::clock::{Clock, SystemClock};

/// How long all servers together may take, if calls do not wait for less.
const WITHIN: Duration = Duration::from_secs(1);
/// How often the other facts of a server are read again.
const FACTS_EVERY: Duration = Duration::from_secs(10);

/// A server to ask, and a key that lives there.
type ProbedServer = (Arc<Node>, String);

impl RedisClient {
    /// Whether charges are possible, on every master. The answer comes within a second, or sooner if calls wait for less.
    ///
    /// It waits for no place among the calls under way: a probe must get through when calls do not.
    pub(crate) async fn health(&self) -> StoreHealth {
        let deadline = Instant::now() + self.0.config.deadline.min(WITHIN);
        let (servers, gap) = match self.servers(deadline).await {
            Ok(found) => found,
            Err(failure) => (Vec::new(), Some(failure)),
        };
        let probe = &self.0.probe;
        let answers = join_all(servers.iter().map(|(node, key)| node.probe(probe, key, deadline))).await;
        let mut failures: Vec<Failure> = answers.into_iter().filter_map(Result::err).collect();
        if failures.is_empty() {
            failures.extend(gap);
        }
        for failure in &failures {
            self.0.met(failure);
        }
        // The slot is on the move: the server answers, and calls are sent on.
        failures.retain(|failure| !matches!(failure.fault, Fault::Moved | Fault::Ask | Fault::TryAgain));
        let facts = servers.iter().map(|(node, _)| node.facts());
        let mut health = StoreHealth { servers: servers.len().max(failures.len()), ..StoreHealth::default() };
        for ServerFacts { eviction, skew_ms, .. } in facts {
            health.eviction = health.eviction.or(eviction);
            let skews = health.clock_skew_ms.into_iter().chain(skew_ms);
            health.clock_skew_ms = skews.max_by_key(|skew| skew.unsigned_abs());
        }
        health.obstacles = failures.into_iter().map(Obstacle::from).collect();
        health
    }

    /// The servers that must accept charges, and the problem if there are more than these can handle.
    async fn servers(&self, deadline: Instant) -> Result<(Vec<ProbedServer>, Option<Failure>), Failure> {
        let key = |tag| self.0.probe.key(self.key_prefix(), tag);
        match &self.0.route {
            Route::Single(node) => Ok((vec![(Arc::clone(node), key(0))], None)),
            Route::Sentinel(sentinels) => Ok((vec![(sentinels.master(deadline).await?, key(0))], None)),
            Route::Cluster(cluster) => {
                // Waits for the first map, if there is none yet.
                cluster.master(None, deadline).await?;
                let (masters, served) = cluster.masters();
                let servers = masters.into_iter().map(|(node, tag)| (node, key(tag))).collect();
                let gap = (!served).then(|| Failure::new(Fault::ClusterDown, "some slots have no master"));
                Ok((servers, gap))
            }
        }
    }

    /// Whether no server can be used as each is a replica.
    pub(crate) fn is_read_only(&self) -> bool {
        let nodes = self.0.nodes();
        !nodes.is_empty() && nodes.iter().all(|node| node.is_read_only())
    }
}

impl Node {
    /// Whether the server accepts a charge, asked regardless of the breaker. The breaker counts the answer.
    pub(super) async fn probe(&self, probe: &Probe, key: &str, deadline: Instant) -> Result<(), Failure> {
        let before = SystemClock.now().as_ms();
        let time = self.write(probe, key, deadline).await?;
        let after = SystemClock.now().as_ms();
        let skew_ms = milliseconds(&time).map(|theirs| skew(theirs, before, after));
        let due = self.change_facts(|facts| {
            facts.skew_ms = skew_ms;
            facts.asked.is_none_or(|asked| asked.elapsed() >= FACTS_EVERY)
        });
        // Only the administrator of the server changes it, and not every user may ask.
        if due && let Ok(answer) = self.ask(redis::cmd("INFO").arg("memory"), deadline).await {
            self.change_facts(|facts| facts.read_memory(&answer));
        }
        Ok(())
    }
}
