//! The rights of a node's user, tested command by command.

use redis::{Cmd, ConnectionInfo, aio::MultiplexedConnection};
use tokio::time::timeout;

use super::{
    super::client::{Dialer, Failure, Fault},
    PATIENCE, Server, Severity, ask,
};

/// The rights that a node needs, each tested once; the test below compares them with the ACL line. Text in angle
/// brackets is replaced.
pub(super) const NEEDED: &[&str] = &[
    "PING",
    "SELECT <db>",
    "TIME",
    "EVAL <script> 1 <text>",
    "EVALSHA <sha> 1 <text>",
    "SET <text> a PX 1000",
    "SETRANGE <text> 1 b",
    "PEXPIRE <text> 1000",
    "GETRANGE <text> 0 -1",
    "GET <text>",
    "EXISTS <text>",
    "ZADD <set> 0 a",
    "PEXPIRE <set> 1000",
    "ZSCORE <set> a",
    "ZCOUNT <set> 0 1",
    "ZRANGE <set> 0 1",
    "ZREVRANGE <set> 0 1",
    "ZRANGEBYSCORE <set> 0 1",
    "ZRANGEBYLEX <set> - + LIMIT 0 1",
    "ZREMRANGEBYSCORE <set> 1 2",
    "ZREM <set> b",
    "LPUSH <list> a",
    "PEXPIRE <list> 1000",
    "LTRIM <list> 0 1",
    "LLEN <list>",
    "LRANGE <list> 0 1",
    "DEL <text> <set> <list>",
    "PUBLISH <channel> a",
];
/// Further rights for following a master with sentinels.
pub(super) const NEEDED_UNDER_SENTINELS: &[&str] = &["ROLE"];
/// Further rights in a cluster. `ASKING` applies to the command after it.
pub(super) const NEEDED_IN_A_CLUSTER: &[&str] = &["CLUSTER SLOTS", "ASKING", "GET <text>"];

impl Server<'_> {
    /// Runs each command of a node once, with keys of its own.
    pub(super) async fn check_rights(
        &mut self,
        info: &ConnectionInfo,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), Failure> {
        let prefix = &self.config.key_prefix;
        let key = |name: &str| format!("{prefix}{{doctor}}{name}");
        let channel = format!("{prefix}:doctor");
        let script = "return redis.call('GET', KEYS[1])";
        let put_in = [
            ("<db>", info.redis_settings().db().to_string()),
            ("<script>", script.to_owned()),
            ("<sha>", redis::Script::new(script).get_hash().to_owned()),
            ("<text>", key("text")),
            ("<set>", key("set")),
            ("<list>", key("list")),
            ("<channel>", channel.clone()),
        ];
        let by_topology = match &self.config.url {
            url if url.contains("+sentinel://") => NEEDED_UNDER_SENTINELS,
            url if url.contains("+cluster://") => NEEDED_IN_A_CLUSTER,
            _ => &[],
        };
        let (mut wrong, mut failed) = (Vec::new(), Vec::<(Fault, String)>::new());
        for words in NEEDED.iter().chain(by_topology) {
            let mut command = Cmd::new();
            for word in words.split(' ') {
                let place = put_in.iter().find(|(place, _)| *place == word);
                command.arg(place.map_or(word, |(_, value)| value));
            }
            match ask(connection, &command).await {
                // Another node of the cluster has the slot; rights were looked at before.
                Err(failure) if failure.fault() == Fault::Moved => {}
                Err(failure) if matches!(failure.fault(), Fault::NoAnswer | Fault::Broken) => return Err(failure),
                // Unknown commands are none of a Redis that is new enough, or were renamed.
                Err(failure) if matches!(failure.fault(), Fault::NoPermission | Fault::Refused) => {
                    wrong.push(format!("{} ({})", name_of(words), failure.text()));
                }
                // A problem of the server is reported once.
                Err(failure) => {
                    if failed.iter().all(|(fault, _)| *fault != failure.fault()) {
                        failed.push((failure.fault(), format!("{} ({})", name_of(words), failure.text())));
                    }
                }
                Ok(_) => {}
            }
        }
        for (_, what) in &failed {
            self.say(Severity::Error, format!("commands: allowed, but refused: {what}"));
        }
        wrong.extend(not_heard(info, &self.dialer, &channel).await);
        if wrong.is_empty() {
            self.say(Severity::Ok, "rights: scripts and all commands of a node may be used");
        } else {
            let wrong = wrong.join("; ");
            self.say(
                Severity::Error,
                format!(
                    "rights: not allowed or not possible: {wrong}. The ACL line in docs/operations.md has all rights"
                ),
            );
        }
        Ok(())
    }
}

/// The ACL's name of the command, in capitals.
pub(super) fn name_of(words: &str) -> &str {
    let words = words.split_once(" <").map_or(words, |(name, _)| name);
    if words.starts_with("CLUSTER ") { words } else { words.split(' ').next().unwrap_or(words) }
}

/// Subscribes once, on a separate connection as nodes do. Returns the failure, if there is one.
async fn not_heard(info: &ConnectionInfo, dialer: &Dialer, channel: &str) -> Option<String> {
    let heard = timeout(PATIENCE, async {
        let mut heard = dialer.listen(info).await?;
        Ok(match heard.subscribe(channel).await {
            Err(error) => Err(("SUBSCRIBE", error)),
            Ok(()) => heard.unsubscribe(channel).await.map_err(|error| ("UNSUBSCRIBE", error)),
        })
    });
    match heard.await {
        Ok(Ok(Ok(()))) => None,
        Ok(Ok(Err((name, error)))) => Some(format!("{name} ({})", Failure::of(&error).text())),
        Ok(Err(error)) => Some(format!("another connection ({})", Failure::to_connect(&error).text())),
        Err(_) => Some(format!("SUBSCRIBE (no answer within {PATIENCE:?})")),
    }
}
