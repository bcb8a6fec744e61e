//! The page of metrics: rendered a few times a second at most, however many ask for it.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};

/// The average interval between renderings if the page is requested continuously.
const RENDER_EVERY: Duration = Duration::from_millis(250);
/// How many renderings may follow each other at once after a time without any.
const BURST: u32 = 16;

/// The last rendered page. Every request gets a page that was rendered after it arrived; requests that wait for the
/// next rendering share it.
pub(super) struct Page(Mutex<Option<Rendered>>);

struct Rendered {
    text: Bytes,
    began: Instant,
    /// When a rendering is due that keeps to the average.
    due: Instant,
}

impl Page {
    pub(super) const fn new() -> Self {
        Self(Mutex::const_new(None))
    }

    /// The page, of the time of the question or later.
    pub(super) async fn current(&self, render: impl FnOnce() -> String) -> Bytes {
        let asked = Instant::now();
        let mut last = self.0.lock().await;
        let mut due = asked;
        if let Some(last) = &*last {
            if last.began >= asked {
                return last.text.clone();
            }
            due = last.due;
            if let Some(earliest) = due.checked_sub(RENDER_EVERY * BURST) {
                sleep_until(earliest).await;
            }
        }
        let began = Instant::now();
        let text = Bytes::from(render());
        *last = Some(Rendered { text: text.clone(), began, due: due.max(began) + RENDER_EVERY });
        text
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn many_questions_share_a_page_that_is_no_older_than_they_are() {
        let (page, rendered) = (Page::new(), AtomicU32::new(0));
        let ask = || page.current(|| (rendered.fetch_add(1, Ordering::Relaxed) + 1).to_string());
        for number in 1..=BURST {
            assert_eq!(ask().await, number.to_string(), "each asks after the one before was rendered");
        }
        let started = Instant::now();
        let answers = join_all((0..1_000).map(|_| ask())).await;
        // The first request renders its own page. All others arrived before the next rendering, unless the machine
        // slept in between.
        let slept = started.elapsed().as_millis() / RENDER_EVERY.as_millis();
        let renderings = rendered.load(Ordering::Relaxed);
        assert!(u128::from(renderings) <= u128::from(BURST) + 2 + slept, "{renderings} renderings");
        assert!(answers.iter().collect::<std::collections::HashSet<_>>().len() <= 2 + usize::try_from(slept).unwrap());
        for _ in 0..4 {
            ask().await;
        }
        assert!(started.elapsed() >= 3 * RENDER_EVERY, "{:?}", started.elapsed());
    }
}
