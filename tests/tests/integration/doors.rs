//! Who gets in: tokens, certificates, hosts, connections, and how often one may fail.

mod crowds;
mod files;
mod listeners;
mod logins;
mod misplaced;
mod open;
mod proxy_protocol;
mod routes;
mod secrets;
mod strangers;
mod tls;
mod tokens;
