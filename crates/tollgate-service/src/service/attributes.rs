//! The attributes of a call other than caller, resource and usage.

use std::net::IpAddr;

use crate::{
    blocks::counted_address,
    service::{
        CallError,
        call::{MAX_ENTRIES, check_name, check_text},
    },
};

/// The longest value of an attribute, in bytes.
const MAX_VALUE_BYTES: usize = 256;

/// The attributes of a call, checked. `ip` is a client address, and named as addresses are counted.
pub(super) struct Attributes<'a> {
    given: &'a [(&'a str, &'a str)],
    ip: Option<String>,
}

impl<'a> Attributes<'a> {
    pub(super) fn check(given: &'a [(&'a str, &'a str)]) -> Result<Self, CallError> {
        if given.len() > MAX_ENTRIES {
            return Err(CallError::field("attributes", format_args!("has more than {MAX_ENTRIES} entries")));
        }
        let mut ip = None;
        for (name, value) in given {
            check_name("attributes", name)?;
            check_text(format_args!("attributes.{name}"), value, MAX_VALUE_BYTES)?;
            if *name == "ip" {
                let address: IpAddr = value.parse().map_err(|_| {
                    CallError::field("attributes.ip", "must be an IP address, such as 192.0.2.1 or 2001:db8::1")
                })?;
                ip = Some(counted_address(address));
            }
        }
        Ok(Self { given, ip })
    }

    /// The value of the attribute called `name`.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        if name == "ip" {
            return self.ip();
        }
        self.given.iter().find(|(have, _)| *have == name).map(|(_, value)| *value)
    }

    /// Where the call comes from, as addresses are counted.
    pub(super) fn ip(&self) -> Option<&str> {
        self.ip.as_deref()
    }
}
