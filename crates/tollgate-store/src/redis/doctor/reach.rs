//! Whether a server can be reached, is a Redis, and answers: in this order, so that each problem gets the right name.

use redis::{
    AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, Value, aio::MultiplexedConnection,
};
use tokio::{
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::{
    super::client::{Dialer, Failure, Fault},
    PATIENCE,
};

/// A connection to a Redis that answers, or the problem.
pub(super) async fn reach(info: &ConnectionInfo, dialer: &Dialer) -> Result<MultiplexedConnection, String> {
    let opened = timeout(PATIENCE, async {
        match info.addr() {
            ConnectionAddr::Unix(path) => UnixStream::connect(path).await.map(drop),
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                TcpStream::connect((host.as_str(), *port)).await.map(drop)
            }
            // The client's message describes other problems.
            _ => Ok(()),
        }
    });
    match opened.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(format!("cannot be reached: {error}")),
        Err(_) => {
            return Err(format!("cannot be reached: no connection within {PATIENCE:?}; is a firewall in between?"));
        }
    }
    let silent = || {
        format!(
            "accepts connections and does not answer within {PATIENCE:?}: it hangs (stopped, swapped out, in a long \
             command or script), or it is not a Redis"
        )
    };
    // The bounds are our own.
    let settings = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let entered = timeout(PATIENCE, dialer.connect(info, &settings));
    let mut connection = match entered.await {
        Ok(entered) => entered.map_err(|error| refusal(info, &error))?,
        Err(_) => return Err(silent()),
    };
    let ping = redis::cmd("PING");
    let answer = match timeout(PATIENCE, ping.query_async::<Value>(&mut connection)).await {
        Ok(answer) => answer.and_then(Value::extract_error),
        Err(_) => return Err(silent()),
    };
    match answer {
        Ok(Value::SimpleString(text)) if text == "PONG" => Ok(connection),
        Ok(_) => Err("does not answer PING as a Redis: another program listens there".to_owned()),
        // Rights are looked at one by one.
        Err(error) if Failure::of(&error).fault() == Fault::NoPermission => Ok(connection),
        Err(error) => Err(refusal(info, &error)),
    }
}

/// The meaning of a failed connection or a bad answer.
fn refusal(info: &ConnectionInfo, error: &RedisError) -> String {
    let tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
    let what = match Failure::of(error).fault() {
        Fault::Unauthenticated if error.code() == Some("NOAUTH") => "requires a user and a password",
        Fault::Unauthenticated => "user or password is wrong",
        Fault::NoPermission => "the user may not connect",
        Fault::Loading => "loads its data; wait for it",
        Fault::Busy => "is busy with a script that does not end; see SCRIPT KILL",
        Fault::MasterDown => "is a replica that has lost its master",
        _ if error.kind() == ErrorKind::Parse => "does not answer as a Redis: another program listens there",
        Fault::Broken if tls => {
            "accepts connections, but TLS fails: check that the port uses TLS, and the certificates"
        }
        Fault::Broken => {
            "accepts connections and closes them: it is not a Redis, requires TLS (rediss://), or has too many clients"
        }
        _ => "refuses",
    };
    format!("{what}: {error}")
}
