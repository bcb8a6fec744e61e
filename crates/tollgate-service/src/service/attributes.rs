//! The attributes of a call other than caller, resource and usage.

use std::net::IpAddr;

use crate::{
    blocks::client_network_name,
    service::{
        CallError,
        call::{MAX_ENTRIES, check_name, check_text},
    },
};

/// The maximum length of an attribute's value, in bytes.
const MAX_VALUE_BYTES: usize = 256;

/// The checked attributes of a call.
pub(super) struct Attributes<'a> {
    entries: &'a [(&'a str, &'a str)],
    /// The attribute `ip`, in the form in which addresses are counted.
    ip: Option<String>,
}

impl<'a> Attributes<'a> {
    pub(super) fn check(entries: &'a [(&'a str, &'a str)]) -> Result<Self, CallError> {
        if entries.len() > MAX_ENTRIES {
            return Err(CallError::field("attributes", format_args!("has more than {MAX_ENTRIES} entries")));
        }
        let mut ip = None;
        for (name, value) in entries {
            check_name("attributes", name)?;
            check_text(format_args!("attributes.{name}"), value, MAX_VALUE_BYTES)?;
            if *name == "ip" {
                let address: IpAddr = value.parse().map_err(|_| {
                    CallError::field("attributes.ip", "must be an IP address, such as 192.0.2.1 or 2001:db8::1")
                })?;
                ip = Some(client_network_name(address));
            }
        }
        Ok(Self { entries, ip })
    }

    /// The value of an attribute.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        if name == "ip" {
            return self.ip();
        }
        self.entries.iter().find(|(entry, _)| *entry == name).map(|(_, value)| *value)
    }

    /// The client address, in the form in which addresses are counted.
    pub(super) fn ip(&self) -> Option<&str> {
        self.ip.as_deref()
    }
}
