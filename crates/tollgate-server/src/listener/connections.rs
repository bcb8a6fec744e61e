//! The table of connections: it bounds their number, in total and per address, and selects the one that is closed for a
//! new one.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{
    activity::Activity,
    close_reason::CloseReason,
    thread_memory::{MemoryRelief, ThreadMemory},
};

/// The memory of an idle connection, in bytes, rounded up: measured 40 KB with TLS and HTTP/2.
const CONNECTION_BYTES: usize = 64 << 10;

/// The bounds of connections.
#[derive(Clone, Debug)]
pub struct ConnectionBounds {
    /// The maximum number of connections of a listener. At the maximum, a connection without a call in progress is
    /// closed for a new one.
    pub max_total: usize,
    /// The maximum number of connections of an address; trusted proxies have no maximum.
    pub max_per_address: usize,
    /// The maximum time from the end of one HTTP/1 request until the headers of the next one have arrived.
    pub header_timeout: Duration,
    /// The maximum time of a connection without a call.
    pub idle_timeout: Duration,
    /// The maximum time until a response that does not stream is written.
    pub response_timeout: Duration,
    /// The maximum memory of a thread's connections for calls in progress and unwritten responses, in bytes.
    pub pending_bytes: usize,
    /// The maximum rate of TLS handshakes of a listener; one address may use a quarter of it.
    pub handshakes_per_second: u32,
    /// Whether connections of trusted proxies begin with a header of the PROXY protocol.
    pub proxy_protocol: bool,
}

/// The open connections of a node.
#[derive(Debug, Default)]
pub(crate) struct ConnectionTable(Mutex<OpenConnections>);

#[derive(Debug, Default)]
struct OpenConnections {
    next: u64,
    connections: HashMap<u64, Entry>,
    count_by_listener: HashMap<&'static str, usize>,
    count_by_source: HashMap<(&'static str, IpAddr), usize>,
}

#[derive(Debug)]
struct Entry {
    listener: &'static str,
    source: Option<IpAddr>,
    activity: Activity,
}

impl ConnectionTable {
    /// Admits a connection. At the maximum, another connection is closed for it; `None` if all have calls in progress.
    ///
    /// `source` is the network that the connection is counted by
    /// ([`client_network`](tollgate_service::blocks::client_network)); `None` for a trusted proxy.
    pub(super) fn admit(
        self: &Arc<Self>,
        listener: &'static str,
        source: Option<IpAddr>,
        bounds: &ConnectionBounds,
        activity: Activity,
    ) -> Option<ConnectionPermit> {
        let mut open = self.0.lock();
        open.make_room_for(listener, source, bounds)?;
        if open.count_by_listener.get(listener).is_some_and(|count| *count >= bounds.max_total) {
            open.displace(|entry| entry.listener == listener)?;
        }
        let number = open.next;
        open.next += 1;
        open.connections.insert(number, Entry { listener, source: None, activity: activity.clone() });
        *open.count_by_listener.entry(listener).or_default() += 1;
        open.count(number, source);
        Some(ConnectionPermit { table: Arc::clone(self), number, activity })
    }
}

impl MemoryRelief for ConnectionTable {
    fn relieve(&self, thread: &ThreadMemory) {
        let open = self.0.lock();
        let rank = |activity: &Activity| {
            let bytes = activity.bytes();
            (activity.is_unauthenticated() && bytes > CONNECTION_BYTES, bytes)
        };
        let (mut total_bytes, mut largest) = (0_usize, None::<&Activity>);
        for Entry { activity, .. } in open.connections.values() {
            if Arc::ptr_eq(&activity.thread().bytes, &thread.bytes) && !activity.is_closing() {
                total_bytes += activity.bytes();
                largest = largest.filter(|largest| rank(largest) >= rank(activity)).or(Some(activity));
            }
        }
        if let Some(largest) = largest.filter(|_| total_bytes > thread.max_bytes) {
            largest.close(CloseReason::Memory);
        }
    }
}

impl OpenConnections {
    /// Closes a connection of `source` if it has its maximum number.
    fn make_room_for(
        &mut self,
        listener: &'static str,
        source: Option<IpAddr>,
        bounds: &ConnectionBounds,
    ) -> Option<()> {
        let Some(source) = source else { return Some(()) };
        if self.count_by_source.get(&(listener, source)).is_some_and(|count| *count >= bounds.max_per_address) {
            self.displace(|entry| entry.listener == listener && entry.source == Some(source))?;
        }
        Some(())
    }

    /// Closes the candidate that matters least.
    fn displace(&mut self, is_candidate: impl Fn(&Entry) -> bool) -> Option<()> {
        // The order: connections without any request, unauthenticated ones without a call, unauthenticated ones that do
        // not read their responses, authenticated ones without a call.
        let rank = |activity: &Activity| match (activity.is_busy(), activity.is_unauthenticated()) {
            (false, _) if !activity.has_request() => Some(0),
            (false, true) => Some(1),
            (true, true) if activity.is_blocked_by_client() => Some(2),
            (false, false) => Some(3),
            (true, _) => None,
        };
        let ranked = self.connections.iter().filter(|(_, entry)| is_candidate(entry)).filter_map(|(number, entry)| {
            Some(((rank(&entry.activity)?, entry.activity.last_active()), number, entry))
        });
        let (_, number, entry) = ranked.min_by_key(|(rank, ..)| *rank)?;
        let number = *number;
        entry.activity.close(CloseReason::Displaced);
        // It no longer counts, even if it takes time to close.
        self.remove(number);
        Some(())
    }

    fn count(&mut self, number: u64, source: Option<IpAddr>) {
        let Some(entry) = self.connections.get_mut(&number) else { return };
        entry.source = source;
        if let Some(source) = source {
            *self.count_by_source.entry((entry.listener, source)).or_default() += 1;
        }
    }

    fn remove(&mut self, number: u64) {
        let Some(Entry { listener, source, .. }) = self.connections.remove(&number) else { return };
        if let Some(count) = self.count_by_listener.get_mut(listener) {
            *count -= 1;
        }
        if let Some(source) = source
            && let Some(count) = self.count_by_source.get_mut(&(listener, source))
        {
            *count -= 1;
            if *count == 0 {
                self.count_by_source.remove(&(listener, source));
            }
        }
    }
}

/// An admitted connection. It counts until this is dropped.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    table: Arc<ConnectionTable>,
    number: u64,
    activity: Activity,
}

impl ConnectionPermit {
    pub(super) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Counts the connection by `source`, which its proxy has named; `None` if `source` has its maximum number of
    /// connections, all with calls in progress.
    pub(super) fn set_source(&self, listener: &'static str, source: IpAddr, bounds: &ConnectionBounds) -> Option<()> {
        let mut open = self.table.0.lock();
        open.make_room_for(listener, Some(source), bounds)?;
        open.count(self.number, Some(source));
        Some(())
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.table.0.lock().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use axum::http::Request;

    use super::*;

    fn bounds(max_total: usize, max_per_address: usize) -> ConnectionBounds {
        let second = Duration::from_secs(1);
        ConnectionBounds {
            max_total,
            max_per_address,
            header_timeout: second,
            idle_timeout: second,
            response_timeout: second,
            pending_bytes: 1 << 20,
            handshakes_per_second: 1,
            proxy_protocol: false,
        }
    }

    struct Listener {
        table: Arc<ConnectionTable>,
        bounds: ConnectionBounds,
        thread: ThreadMemory,
    }

    impl Listener {
        fn new(bounds: ConnectionBounds) -> Self {
            let thread = ThreadMemory::new(Arc::default(), bounds.pending_bytes);
            Self { table: Arc::default(), bounds, thread }
        }

        fn connect(&self, source: &str) -> Option<ConnectionPermit> {
            let activity =
                Activity::new(Arc::clone(&self.table) as _, self.thread.clone(), self.bounds.response_timeout);
            let source = source.parse().ok().map(tollgate_service::blocks::client_network);
            self.table.admit("http", source, &self.bounds, activity)
        }
    }

    fn is_closing(permit: &ConnectionPermit) -> bool {
        permit.activity().is_closing()
    }

    /// Fails if the oldest connection is displaced, if idle ones are never displaced, and if a displaced connection
    /// counts until it has ended.
    #[test]
    fn connections_without_a_request_are_displaced_first_and_those_with_calls_never() {
        let listener = Listener::new(bounds(3, 10));
        let idle = listener.connect("192.0.2.1").unwrap();
        drop(idle.activity().begin_call(&Request::new(())));
        let (silent, busy) = (listener.connect("192.0.2.2").unwrap(), listener.connect("192.0.2.3").unwrap());
        let call = busy.activity().begin_call(&Request::new(()));
        let first = listener.connect("192.0.2.4").unwrap();
        assert!(is_closing(&silent) && !is_closing(&idle) && !is_closing(&busy));
        let _first_call = first.activity().begin_call(&Request::new(()));
        let second = listener.connect("192.0.2.4").unwrap();
        assert!(is_closing(&idle) && !is_closing(&busy));
        let _second_call = second.activity().begin_call(&Request::new(()));
        assert!(listener.connect("192.0.2.5").is_none(), "all have calls in progress");
        drop(call);
        assert!(listener.connect("192.0.2.5").is_some());
        assert!(is_closing(&busy));
        // A displaced connection is not subtracted twice.
        drop((idle, silent, busy));
        assert_eq!(listener.table.0.lock().count_by_listener["http"], 2);
    }

    /// Fails if IPv6 addresses are counted separately, and if an idle connection of another address is closed.
    #[test]
    fn one_address_displaces_only_its_own_connections() {
        let listener = Listener::new(bounds(100, 2));
        let other = listener.connect("192.0.2.1").unwrap();
        let permits: Vec<ConnectionPermit> =
            (1..=5).map(|n| listener.connect(&format!("2001:db8::{n}")).unwrap()).collect();
        assert_eq!(permits.iter().filter(|permit| !is_closing(permit)).count(), 2);
        assert!(!is_closing(&other));
        // A connection of a trusted proxy counts for no address until its client is known.
        let proxied: Vec<ConnectionPermit> = (0..5).map(|_| listener.connect("").unwrap()).collect();
        assert!(!proxied.iter().any(is_closing));
        for permit in &proxied {
            permit.set_source("http", "198.51.100.7".parse().unwrap(), &listener.bounds).unwrap();
        }
        assert_eq!(proxied.iter().filter(|permit| !is_closing(permit)).count(), 2);
    }

    /// Fails if the smallest connection is closed, and if one connection is closed per call while the first is closing.
    #[test]
    fn the_connection_with_the_most_memory_is_closed_first() {
        let listener = Listener::new(ConnectionBounds { pending_bytes: 1_100_000, ..bounds(100, 100) });
        let permits: Vec<ConnectionPermit> =
            (0..10).map(|n| listener.connect(&format!("192.0.2.{n}")).unwrap()).collect();
        let mut calls = Vec::new();
        // 22 KiB each: 4 or 5 of each connection, and 9 of the third.
        calls.extend(permits.iter().flat_map(|permit| (0..4).map(|_| permit.activity().begin_call(&Request::new(())))));
        calls.extend((0..4).map(|_| permits[2].activity().begin_call(&Request::new(()))));
        assert!(!permits.iter().any(is_closing));
        calls.extend((0..8).map(|n| permits[n].activity().begin_call(&Request::new(()))));
        assert_eq!(permits.iter().filter(|permit| is_closing(permit)).count(), 1);
        assert!(is_closing(&permits[2]));
        drop((calls, permits));
        // An authenticated connection is closed only if no unauthenticated one uses much memory.
        let permits: Vec<ConnectionPermit> =
            (0..10).map(|n| listener.connect(&format!("192.0.2.{n}")).unwrap()).collect();
        permits[0].activity().mark_authenticated();
        let mut calls: Vec<_> = (0..8).map(|_| permits[0].activity().begin_call(&Request::new(()))).collect();
        while !permits.iter().any(is_closing) {
            calls.extend(permits[1..].iter().map(|permit| permit.activity().begin_call(&Request::new(()))));
        }
        assert!(!is_closing(&permits[0]));
        drop((calls, permits));
        assert_eq!(listener.thread.bytes.load(Ordering::Relaxed), 0);
        // One connection may use a quarter.
        let permits = [listener.connect("192.0.2.1").unwrap()];
        let calls: Vec<_> = (0..12).map(|_| permits[0].activity().begin_call(&Request::new(()))).collect();
        assert!(!is_closing(&permits[0]));
        let _one_more = permits[0].activity().begin_call(&Request::new(()));
        assert!(is_closing(&permits[0]));
        drop(calls);
    }
}
