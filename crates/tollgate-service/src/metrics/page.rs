//! The page of metrics. It is rendered at a limited rate, however many requests there are.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};

use crate::gcra::Gcra;

/// The average interval between renderings if the page is requested continuously.
const RENDER_INTERVAL: Duration = Duration::from_millis(250);
/// The number of renderings that may follow each other at once.
const BURST: u32 = 16;
const RATE: Gcra = Gcra::new(RENDER_INTERVAL, Duration::from_millis(250 * BURST as u64));

/// The last rendered page. Every request gets a page that was rendered after it arrived; requests that wait for the
/// next rendering share it.
pub(super) struct Page(Mutex<Option<Rendered>>);

struct Rendered {
    text: Bytes,
    start: Instant,
    /// The theoretical arrival time of the next rendering.
    tat: Instant,
}

impl Page {
    pub(super) const fn new() -> Self {
        Self(Mutex::const_new(None))
    }

    /// A page that was rendered after the request.
    pub(super) async fn current(&self, render: impl FnOnce() -> String) -> Bytes {
        let request_time = Instant::now();
        let mut last = self.0.lock().await;
        if let Some(last) = last.as_ref().filter(|last| last.start >= request_time) {
            return last.text.clone();
        }
        let (time, tat) = RATE.next_event(last.as_ref().map(|last| last.tat), Instant::now());
        sleep_until(time).await;
        let start = Instant::now();
        let text = Bytes::from(render());
        *last = Some(Rendered { text: text.clone(), start, tat });
        text
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn concurrent_requests_share_a_page_that_is_newer_than_they_are() {
        let (page, rendered) = (Page::new(), AtomicU32::new(0));
        let request = || page.current(|| (rendered.fetch_add(1, Ordering::Relaxed) + 1).to_string());
        for number in 1..=BURST {
            assert_eq!(request().await, number.to_string(), "each request follows the previous rendering");
        }
        let start = Instant::now();
        let pages = join_all((0..1_000).map(|_| request())).await;
        // The first request renders its own page. All others arrived before the next rendering, unless the machine
        // slept in between.
        let slept = start.elapsed().as_millis() / RENDER_INTERVAL.as_millis();
        let renderings = rendered.load(Ordering::Relaxed);
        assert!(u128::from(renderings) <= u128::from(BURST) + 2 + slept, "{renderings} renderings");
        assert!(pages.iter().collect::<std::collections::HashSet<_>>().len() <= 2 + usize::try_from(slept).unwrap());
        for _ in 0..4 {
            request().await;
        }
        assert!(start.elapsed() >= 3 * RENDER_INTERVAL, "{:?}", start.elapsed());
    }
}
