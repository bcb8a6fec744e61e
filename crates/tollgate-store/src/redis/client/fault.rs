//! Faults on the way to Redis, by name, and what each means for the charge.

use redis::{ErrorKind, RedisError, ServerErrorKind};
use tollgate_core::{
    ledger::CounterCapReached,
    store::{Obstacle, StoreError},
};

/// The failure of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no connection, and none came to be in time: nothing was sent.
    Unconnected,
    /// The breaker is open: nothing was sent.
    Resting,
    /// The request was sent, and no answer came in time.
    NoAnswer,
    /// The connection broke while the request was on it.
    Broken,
    /// `NOSCRIPT`: the server does not know the script and ran nothing.
    NoScript,
    /// `MOVED`: another node has the slot. Nothing was run.
    Moved,
    /// `ASK`: another node has the slot's new keys. Nothing was run.
    Ask,
    /// `TRYAGAIN`: the slot is on the move and its keys are on both nodes. Nothing was run.
    TryAgain,
    /// `LOADING`: the server reads its data set. Nothing was run.
    Loading,
    /// `BUSY`: another script holds the server. Nothing was run.
    Busy,
    /// `READONLY`: the server is a replica, after a failover for one. Nothing was written.
    ReadOnly,
    /// `CLUSTERDOWN`: the cluster does not serve the slot. Nothing was run.
    ClusterDown,
    /// `MASTERDOWN`: a replica without its master. Nothing was run.
    MasterDown,
    /// `NOREPLICAS`: too few replicas by `min-replicas-to-write`. Nothing was written.
    NoReplicas,
    /// `OOM`: the memory is at `maxmemory`. Redis refuses before a script's first write: nothing was written.
    OutOfMemory,
    /// `MISCONF`: the server cannot save its data and stopped to write. Nothing was written.
    Misconfigured,
    /// `NOPERM`: the user may not do this. Refused before the first write.
    NoPermission,
    /// `NOAUTH`, `WRONGPASS`: the credentials are missing or wrong.
    Unauthenticated,
    /// `CROSSSLOT`: the keys are in several slots. Nothing was run.
    CrossSlot,
    /// A counter or a record was written by another version of the scripts. Nothing was written.
    OtherVersion,
    /// A counter or a record cannot be read, as it was changed by hand. That of others is not concerned.
    Unreadable,
    /// A partition has no place for one more caller-named ledger. Nothing was written.
    CounterCapReached,
    /// Fewer replicas than are waited for had the charge in time. It was made.
    Unreplicated,
    /// Any other error reply of the server.
    Refused,
}

/// The remedy of a fault besides reporting it to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Nothing.
    None,
    /// Reconnect.
    Reconnect,
    /// Find the current master again, and connect to it.
    Relocate,
}

impl Fault {
    /// All of them, for metrics.
    pub const ALL: [Self; 24] = [
        Self::Unconnected,
        Self::Resting,
        Self::NoAnswer,
        Self::Broken,
        Self::NoScript,
        Self::Moved,
        Self::Ask,
        Self::TryAgain,
        Self::Loading,
        Self::Busy,
        Self::ReadOnly,
        Self::ClusterDown,
        Self::MasterDown,
        Self::NoReplicas,
        Self::OutOfMemory,
        Self::Misconfigured,
        Self::NoPermission,
        Self::Unauthenticated,
        Self::CrossSlot,
        Self::OtherVersion,
        Self::Unreadable,
        Self::CounterCapReached,
        Self::Unreplicated,
        Self::Refused,
    ];

    /// The name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unconnected => "unconnected",
            Self::Resting => "breaker_open",
            Self::NoAnswer => "no_answer",
            Self::Broken => "broken",
            Self::NoScript => "noscript",
            Self::Moved => "moved",
            Self::Ask => "ask",
            Self::TryAgain => "tryagain",
            Self::Loading => "loading",
            Self::Busy => "busy",
            Self::ReadOnly => "readonly",
            Self::ClusterDown => "clusterdown",
            Self::MasterDown => "masterdown",
            Self::NoReplicas => "noreplicas",
            Self::OutOfMemory => "oom",
            Self::Misconfigured => "misconf",
            Self::NoPermission => "noperm",
            Self::Unauthenticated => "noauth",
            Self::CrossSlot => "crossslot",
            Self::OtherVersion => "version",
            Self::Unreadable => "unreadable",
            Self::CounterCapReached => "counter_cap_reached",
            Self::Unreplicated => "unreplicated",
            Self::Refused => "refused",
        }
    }

    /// The same in words for everybody, without the details that only operators may see.
    const fn reason(self) -> &'static str {
        match self {
            Self::Unconnected => "cannot be reached",
            Self::Resting | Self::NoAnswer => "does not answer",
            Self::Broken => "breaks its connections",
            Self::Loading => "loads its data",
            Self::Busy => "busy with a script",
            Self::ReadOnly => "read-only",
            Self::ClusterDown | Self::Moved | Self::Ask | Self::TryAgain => "slots are not served",
            Self::MasterDown => "a replica without its master",
            Self::NoReplicas => "too few replicas",
            Self::OutOfMemory => "full",
            Self::Misconfigured => "cannot save its data",
            Self::NoPermission => "rights are missing",
            Self::Unauthenticated => "the login is refused",
            Self::OtherVersion => "of another version",
            Self::Unreadable => "cannot be read",
            Self::Unreplicated => "replicas do not confirm in time",
            Self::NoScript | Self::CrossSlot | Self::CounterCapReached | Self::Refused => "refuses",
        }
    }

    /// Whether the server gave no sign that it works. The breaker counts these faults.
    pub(super) const fn is_silence(self) -> bool {
        matches!(
            self,
            Self::Unconnected
                | Self::NoAnswer
                | Self::Broken
                | Self::Loading
                | Self::Busy
                | Self::ClusterDown
                | Self::MasterDown
        )
    }

    pub(super) const fn remedy(self) -> Remedy {
        match self {
            Self::Broken | Self::Unauthenticated => Remedy::Reconnect,
            Self::Unconnected
            | Self::Resting
            | Self::NoAnswer
            | Self::Moved
            | Self::ReadOnly
            | Self::ClusterDown
            | Self::MasterDown
            | Self::NoReplicas => Remedy::Relocate,
            Self::NoScript
            | Self::Ask
            | Self::TryAgain
            | Self::Loading
            | Self::Busy
            | Self::OutOfMemory
            | Self::Misconfigured
            | Self::NoPermission
            | Self::CrossSlot
            | Self::OtherVersion
            | Self::Unreadable
            | Self::CounterCapReached
            | Self::Unreplicated
            | Self::Refused => Remedy::None,
        }
    }

    fn of(error: &RedisError) -> Self {
        match error.kind() {
            ErrorKind::Server(kind) => Self::of_server(kind, error.detail().unwrap_or_default()),
            ErrorKind::Extension => Self::of_code(error.code().unwrap_or_default()),
            ErrorKind::AuthenticationFailed => Self::Unauthenticated,
            // The client gives up a connection whose answers it cannot read.
            ErrorKind::Io | ErrorKind::Parse => Self::Broken,
            _ => Self::Refused,
        }
    }

    fn of_server(kind: ServerErrorKind, detail: &str) -> Self {
        match kind {
            ServerErrorKind::NoScript => Self::NoScript,
            ServerErrorKind::Moved => Self::Moved,
            ServerErrorKind::Ask => Self::Ask,
            ServerErrorKind::TryAgain => Self::TryAgain,
            ServerErrorKind::BusyLoading => Self::Loading,
            ServerErrorKind::ReadOnly => Self::ReadOnly,
            ServerErrorKind::ClusterDown => Self::ClusterDown,
            ServerErrorKind::MasterDown => Self::MasterDown,
            ServerErrorKind::CrossSlot => Self::CrossSlot,
            ServerErrorKind::NoPerm => Self::NoPermission,
            // Before version 7 an error within a script comes as text: `ERR Error running script (call to
            // f_…): @user_script:1: -OOM command not allowed …`.
            ServerErrorKind::ResponseError if detail.contains("rror running script") => Self::of_text(detail),
            _ => Self::Refused,
        }
    }

    /// The fault of an error whose code follows a dash in a text.
    fn of_text(text: &str) -> Self {
        let code = text.split_ascii_whitespace().find_map(|word| word.strip_prefix('-'));
        code.map_or(Self::Refused, Self::of_code)
    }

    fn of_code(code: &str) -> Self {
        match code {
            "OOM" => Self::OutOfMemory,
            "BUSY" => Self::Busy,
            "NOAUTH" | "WRONGPASS" => Self::Unauthenticated,
            "NOREPLICAS" => Self::NoReplicas,
            "MISCONF" => Self::Misconfigured,
            "READONLY" => Self::ReadOnly,
            "NOPERM" => Self::NoPermission,
            "CLUSTERDOWN" => Self::ClusterDown,
            "TGVERSION" => Self::OtherVersion,
            "TGUNREADABLE" | "WRONGTYPE" => Self::Unreadable,
            "TGCROWDED" => Self::CounterCapReached,
            _ => Self::Refused,
        }
    }
}

/// A fault, with the message of the server or the operating system.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(super) fault: Fault,
    pub(super) text: String,
    /// The server's message after the name of its error.
    pub(super) detail: String,
    /// The message for everybody.
    reason: &'static str,
}

impl Failure {
    pub(crate) const fn fault(&self) -> Fault {
        self.fault
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn new(fault: Fault, text: impl Into<String>) -> Self {
        Self { fault, text: text.into(), detail: String::new(), reason: fault.reason() }
    }

    /// The same, where nothing came rather than a refusal.
    pub(super) fn of_silence(self) -> Self {
        Self { reason: Fault::NoAnswer.reason(), ..self }
    }

    /// That of an answer, or of a request that may have been sent.
    pub(crate) fn of(error: &RedisError) -> Self {
        let detail = error.detail().unwrap_or_default().to_owned();
        Self { detail, ..Self::new(Fault::of(error), error.to_string()) }
    }

    /// That of an error that a script caught: its code comes first or, before version 7, where Redis put it.
    pub(crate) fn of_script(text: &str) -> Self {
        let fault = match Fault::of_code(text.split(' ').next().unwrap_or_default()) {
            Fault::Refused => Fault::of_text(text),
            fault => fault,
        };
        Self::new(fault, text)
    }

    /// That of a connection that did not come to be.
    pub(crate) fn to_connect(error: &RedisError) -> Self {
        match Fault::of(error) {
            fault @ (Fault::Unauthenticated | Fault::NoPermission) => Self::new(fault, error.to_string()),
            _ => Self::new(Fault::Unconnected, error.to_string()),
        }
    }
}

impl From<Failure> for Obstacle {
    fn from(failure: Failure) -> Self {
        Self { reason: failure.reason.to_owned(), error: failure.text }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        let Failure { fault, text, .. } = failure;
        match fault {
            Fault::CounterCapReached => CounterCapReached.into(),
            Fault::NoAnswer | Fault::Broken | Fault::Unreplicated => Self::Indeterminate(text),
            Fault::Unconnected
            | Fault::Resting
            | Fault::Moved
            | Fault::Ask
            | Fault::TryAgain
            | Fault::Loading
            | Fault::Busy
            | Fault::ReadOnly
            | Fault::ClusterDown
            | Fault::MasterDown
            | Fault::NoReplicas => Self::Unreachable(text),
            Fault::NoScript
            | Fault::OutOfMemory
            | Fault::Misconfigured
            | Fault::NoPermission
            | Fault::Unauthenticated
            | Fault::CrossSlot
            | Fault::OtherVersion
            | Fault::Unreadable
            | Fault::Refused => Self::Refused(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the server sends them.
    fn fault(reply: &str) -> Fault {
        let value = redis::parse_redis_value(format!("-{reply}\r\n").as_bytes()).unwrap();
        Failure::of(&value.extract_error().unwrap_err()).fault
    }

    #[test]
    fn every_refusal_of_the_server_has_its_name() {
        for (reply, expected) in [
            ("NOSCRIPT No matching script. Please use EVAL.", Fault::NoScript),
            ("MOVED 3999 127.0.0.1:6381", Fault::Moved),
            ("ASK 3999 127.0.0.1:6381", Fault::Ask),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Fault::TryAgain),
            ("LOADING Redis is loading the dataset in memory", Fault::Loading),
            ("BUSY Redis is busy running a script.", Fault::Busy),
            ("READONLY You can't write against a read only replica. script: f1, on @user_script:1.", Fault::ReadOnly),
            ("CLUSTERDOWN Hash slot not served", Fault::ClusterDown),
            ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", Fault::MasterDown),
            ("NOREPLICAS Not enough good replicas to write.", Fault::NoReplicas),
            ("OOM command not allowed when used memory > 'maxmemory'. script: f1", Fault::OutOfMemory),
            ("MISCONF Redis is configured to save RDB snapshots", Fault::Misconfigured),
            ("NOPERM User tollgate has no permissions to run the 'evalsha' command", Fault::NoPermission),
            ("NOAUTH Authentication required.", Fault::Unauthenticated),
            ("WRONGPASS invalid username-password pair or user is disabled.", Fault::Unauthenticated),
            ("CROSSSLOT Keys in request don't hash to the same slot", Fault::CrossSlot),
            ("TGVERSION a counter is of version 2", Fault::OtherVersion),
            ("TGUNREADABLE user_script:9: data string too short", Fault::Unreadable),
            ("ERR wrong number of arguments", Fault::Refused),
            (
                "ERR Error running script (call to f_1): @user_script:9: -OOM command not allowed when used memory",
                Fault::OutOfMemory,
            ),
            ("ERR Error running script (call to f_1): @user_script:9: -READONLY You can't write", Fault::ReadOnly),
        ] {
            assert_eq!(fault(reply), expected, "{reply}");
        }
    }

    #[test]
    fn only_a_request_that_may_have_run_is_indeterminate() {
        for fault in Fault::ALL {
            let unknown = matches!(StoreError::from(Failure::new(fault, "")), StoreError::Indeterminate(_));
            assert_eq!(unknown, matches!(fault, Fault::NoAnswer | Fault::Broken | Fault::Unreplicated), "{fault:?}");
        }
    }
}
