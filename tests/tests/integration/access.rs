//! Access: tokens, certificates, host names, connections, and bounds on failed logins.

mod connection_limits;
mod failed_logins;
mod files;
mod listeners;
mod misplaced_secrets;
mod open_loopback;
mod proxy_protocol;
mod routes;
mod secrets;
mod tls;
mod tokens;
mod unauthenticated;
