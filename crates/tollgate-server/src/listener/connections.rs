//! The table of connections: how many there may be, of one address and in total, and which one is closed for a new one.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{
    activity::Activity,
    close_reason::CloseReason,
    thread_memory::{MemoryRelief, ThreadMemory},
};

/// The memory of a connection without any call, in bytes, rounded up: measured 40 KB with TLS and HTTP/2.
const CONNECTION_BYTES: usize = 64 << 10;

/// The bounds of connections.
#[derive(Clone, Debug)]
pub struct ConnectionBounds {
    /// How many there may be on each listener. Where there are as many, one that has no call in work ends for the next.
    pub most: usize,
    /// How many of them one address may have; trusted proxies may have any number.
    pub most_of_address: usize,
    /// How long a client may take to send the headers of an HTTP/1 request, from the end of the one before.
    pub header_timeout: Duration,
    /// How long a connection may be without a call.
    pub idle_timeout: Duration,
    /// How long an answer that does not stream may take to be written.
    pub answer_timeout: Duration,
    /// How many bytes the connections of one thread may hold for calls in work and answers not yet written.
    pub pending_bytes: usize,
    /// How many TLS handshakes may begin in a second on each listener; a quarter of them from one address.
    pub handshakes_per_second: u32,
    /// Whether connections of trusted proxies begin with a header of the PROXY protocol.
    pub proxy_protocol: bool,
}

/// The open connections of a node.
#[derive(Debug, Default)]
pub(crate) struct ConnectionTable(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, Entry>,
    of_listener: HashMap<&'static str, usize>,
    of_source: HashMap<(&'static str, IpAddr), usize>,
}

#[derive(Debug)]
struct Entry {
    listener: &'static str,
    source: Option<IpAddr>,
    activity: Activity,
}

impl ConnectionTable {
    /// Takes a place on a listener. Where none is free, the connection ends that is missed least; `None` if all have
    /// calls in work.
    ///
    /// `source` is the address that the connection counts for
    /// ([`client_network`](tollgate_service::blocks::client_network)); none for that of a trusted proxy.
    pub(super) fn admit(
        self: &Arc<Self>,
        listener: &'static str,
        source: Option<IpAddr>,
        bounds: &ConnectionBounds,
        activity: Activity,
    ) -> Option<ConnectionSlot> {
        let mut open = self.0.lock();
        open.make_room_for(listener, source, bounds)?;
        if open.of_listener.get(listener).is_some_and(|count| *count >= bounds.most) {
            open.displace(|entry| entry.listener == listener)?;
        }
        let number = open.next;
        open.next += 1;
        open.connections.insert(number, Entry { listener, source: None, activity: activity.clone() });
        *open.of_listener.entry(listener).or_default() += 1;
        open.count(number, source);
        Some(ConnectionSlot { table: Arc::clone(self), number, activity })
    }
}

impl MemoryRelief for ConnectionTable {
    fn relieve(&self, thread: &ThreadMemory) {
        let open = self.0.lock();
        let rank = |activity: &Activity| {
            let bytes = activity.bytes();
            (activity.is_of_stranger() && bytes > CONNECTION_BYTES, bytes)
        };
        let (mut held, mut largest) = (0_usize, None::<&Activity>);
        for Entry { activity, .. } in open.connections.values() {
            if Arc::ptr_eq(&activity.thread().bytes, &thread.bytes) && !activity.is_cut() {
                held += activity.bytes();
                largest = largest.filter(|largest| rank(largest) >= rank(activity)).or(Some(activity));
            }
        }
        if let Some(largest) = largest.filter(|_| held > thread.most) {
            largest.cut(CloseReason::Memory);
        }
    }
}

impl Open {
    /// Makes room among the connections of one address.
    fn make_room_for(
        &mut self,
        listener: &'static str,
        source: Option<IpAddr>,
        bounds: &ConnectionBounds,
    ) -> Option<()> {
        let Some(source) = source else { return Some(()) };
        if self.of_source.get(&(listener, source)).is_some_and(|count| *count >= bounds.most_of_address) {
            self.displace(|entry| entry.listener == listener && entry.source == Some(source))?;
        }
        Some(())
    }

    /// Ends the connection among these that is missed least.
    fn displace(&mut self, among: impl Fn(&Entry) -> bool) -> Option<()> {
        // The order: connections without any request, unauthenticated ones without a call, unauthenticated ones that do
        // not read their answers, and then authenticated ones without a call.
        let rank = |activity: &Activity| match (activity.is_busy(), activity.is_of_stranger()) {
            (false, _) if !activity.has_asked() => Some(0),
            (false, true) => Some(1),
            (true, true) if activity.waits_to_be_read() => Some(2),
            (false, false) => Some(3),
            (true, _) => None,
        };
        let ranked = self.connections.iter().filter(|(_, entry)| among(entry)).filter_map(|(number, entry)| {
            Some(((rank(&entry.activity)?, entry.activity.last_active()), number, entry))
        });
        let (_, number, entry) = ranked.min_by_key(|(rank, ..)| *rank)?;
        let number = *number;
        entry.activity.cut(CloseReason::Displaced);
        // Its place is free from now on, whatever its end takes.
        self.remove(number);
        Some(())
    }

    fn count(&mut self, number: u64, source: Option<IpAddr>) {
        let Some(entry) = self.connections.get_mut(&number) else { return };
        entry.source = source;
        if let Some(source) = source {
            *self.of_source.entry((entry.listener, source)).or_default() += 1;
        }
    }

    fn remove(&mut self, number: u64) {
        let Some(Entry { listener, source, .. }) = self.connections.remove(&number) else { return };
        if let Some(count) = self.of_listener.get_mut(listener) {
            *count -= 1;
        }
        if let Some(source) = source
            && let Some(count) = self.of_source.get_mut(&(listener, source))
        {
            *count -= 1;
            if *count == 0 {
                self.of_source.remove(&(listener, source));
            }
        }
    }
}

/// A connection's place on its listener, free when this is dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    table: Arc<ConnectionTable>,
    number: u64,
    activity: Activity,
}

impl ConnectionSlot {
    /// The connection.
    pub(super) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Counts the connection for `source` from now on, whom its proxy has named; `None` if that has too many.
    pub(super) fn name(&self, listener: &'static str, source: IpAddr, bounds: &ConnectionBounds) -> Option<()> {
        let mut open = self.table.0.lock();
        open.make_room_for(listener, Some(source), bounds)?;
        open.count(self.number, Some(source));
        Some(())
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.table.0.lock().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use axum::http::Request;

    use super::*;

    fn bounds(most: usize, most_of_address: usize) -> ConnectionBounds {
        let second = Duration::from_secs(1);
        ConnectionBounds {
            most,
            most_of_address,
            header_timeout: second,
            idle_timeout: second,
            answer_timeout: second,
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

        fn connect(&self, source: &str) -> Option<ConnectionSlot> {
            let activity = Activity::new(Arc::clone(&self.table) as _, self.thread.clone(), self.bounds.answer_timeout);
            let source = source.parse().ok().map(tollgate_service::blocks::client_network);
            self.table.admit("http", source, &self.bounds, activity)
        }
    }

    fn is_cut(place: &ConnectionSlot) -> bool {
        place.activity().is_cut()
    }

    /// Seen to fail with the oldest displaced whatever it did, with idle ones never displaced, and with places that are
    /// free only when the displaced connection has ended.
    #[test]
    fn connections_without_a_request_are_displaced_first_and_those_in_work_never() {
        let listener = Listener::new(bounds(3, 10));
        let idle = listener.connect("192.0.2.1").unwrap();
        drop(idle.activity().begin(&Request::new(())));
        let (silent, busy) = (listener.connect("192.0.2.2").unwrap(), listener.connect("192.0.2.3").unwrap());
        let call = busy.activity().begin(&Request::new(()));
        let first = listener.connect("192.0.2.4").unwrap();
        assert!(is_cut(&silent) && !is_cut(&idle) && !is_cut(&busy));
        let _in_work = first.activity().begin(&Request::new(()));
        let second = listener.connect("192.0.2.4").unwrap();
        assert!(is_cut(&idle) && !is_cut(&busy));
        let _in_work_too = second.activity().begin(&Request::new(()));
        assert!(listener.connect("192.0.2.5").is_none(), "all have calls in work");
        drop(call);
        assert!(listener.connect("192.0.2.5").is_some());
        assert!(is_cut(&busy));
        // A closed connection does not give back a place that belongs to another one.
        drop((idle, silent, busy));
        assert_eq!(listener.table.0.lock().of_listener["http"], 2);
    }

    /// Seen to fail with a bound that counts each IPv6 address separately, and with one that closes any idle
    /// connection.
    #[test]
    fn one_address_takes_places_from_itself_alone() {
        let listener = Listener::new(bounds(100, 2));
        let other = listener.connect("192.0.2.1").unwrap();
        let places: Vec<ConnectionSlot> =
            (1..=5).map(|n| listener.connect(&format!("2001:db8::{n}")).unwrap()).collect();
        assert_eq!(places.iter().filter(|place| !is_cut(place)).count(), 2);
        assert!(!is_cut(&other));
        // A trusted proxy counts for no address until it names one.
        let proxied: Vec<ConnectionSlot> = (0..5).map(|_| listener.connect("").unwrap()).collect();
        assert!(!proxied.iter().any(is_cut));
        for place in &proxied {
            place.name("http", "198.51.100.7".parse().unwrap(), &listener.bounds).unwrap();
        }
        assert_eq!(proxied.iter().filter(|place| !is_cut(place)).count(), 2);
    }

    /// Seen to fail with the smallest cut, and with another cut for each call while the first still ends.
    #[test]
    fn the_connection_that_holds_the_most_goes_first() {
        let listener = Listener::new(ConnectionBounds { pending_bytes: 1_100_000, ..bounds(100, 100) });
        let places: Vec<ConnectionSlot> = (0..10).map(|n| listener.connect(&format!("192.0.2.{n}")).unwrap()).collect();
        let mut calls = Vec::new();
        // 22 KiB each: 4 or 5 of each connection, and 9 of the third.
        calls.extend(places.iter().flat_map(|place| (0..4).map(|_| place.activity().begin(&Request::new(())))));
        calls.extend((0..4).map(|_| places[2].activity().begin(&Request::new(()))));
        assert!(!places.iter().any(is_cut));
        calls.extend((0..8).map(|n| places[n].activity().begin(&Request::new(()))));
        assert_eq!(places.iter().filter(|place| is_cut(place)).count(), 1);
        assert!(is_cut(&places[2]));
        drop((calls, places));
        // Of an authenticated caller, only if no unauthenticated connection holds much.
        let places: Vec<ConnectionSlot> = (0..10).map(|n| listener.connect(&format!("192.0.2.{n}")).unwrap()).collect();
        places[0].activity().mark_authenticated();
        let mut calls: Vec<_> = (0..8).map(|_| places[0].activity().begin(&Request::new(()))).collect();
        while !places.iter().any(is_cut) {
            calls.extend(places[1..].iter().map(|place| place.activity().begin(&Request::new(()))));
        }
        assert!(!is_cut(&places[0]));
        drop((calls, places));
        assert_eq!(listener.thread.bytes.load(Ordering::Relaxed), 0);
        // A single connection may hold a quarter.
        let places = [listener.connect("192.0.2.1").unwrap()];
        let calls: Vec<_> = (0..12).map(|_| places[0].activity().begin(&Request::new(()))).collect();
        assert!(!is_cut(&places[0]));
        let _one_more = places[0].activity().begin(&Request::new(()));
        assert!(is_cut(&places[0]));
        drop(calls);
    }
}
