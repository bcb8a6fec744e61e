//! Who gets in: tokens, certificates, hosts, connections, and how often one may fail.

mod listeners;
mod logins;
mod open;
mod routes;
mod secrets;
mod tls;
mod tokens;
