//! The cost of floods of requests for pages without authentication.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::body::Bytes;
use reqwest::{StatusCode, header};
use tokio::task::JoinSet;

use super::{assert_latency_nearly_unchanged, node_with, p99_over_grpc};
use crate::harness::{http, memory_node, shop, until};

/// Four connections each request 100 pages at once, repeatedly: valid calls are decided as before, and probes are
/// answered. Renderings are counted by their differences, as each valid call changes the page. Seen to fail when every
/// request rendered the metrics.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "bound in time: tests/run runs it alone"]
async fn a_flood_of_open_pages_does_not_slow_decisions() {
    // With policies of many tiers and classes, the metrics page is large.
    let shipped = ["venice", "deapi", "tiered-chat"]
        .map(|name| format!("--policy={}/../deploy/policies/{name}.yaml", env!("CARGO_MANIFEST_DIR")));
    let (_folder, node) = node_with(&shipped.each_ref().map(String::as_str), None);
    let before = p99_over_grpc(&node).await;
    let (go, answered, refused) = (Arc::new(AtomicBool::new(true)), Arc::default(), Arc::new(AtomicUsize::new(0)));
    let answered: Arc<AtomicUsize> = answered;
    let started = Instant::now();
    let pages: Arc<Mutex<HashSet<Bytes>>> = Arc::default();
    let mut flood = JoinSet::new();
    for _ in 0..4 {
        let client = http().http2_prior_knowledge().build().unwrap();
        for number in 0..100 {
            let page = if number % 4 == 0 { "/openapi.json" } else { "/metrics" };
            let (client, url) = (client.clone(), format!("http://{}{page}", node.http_address));
            let (go, answered, refused) = (Arc::clone(&go), Arc::clone(&answered), Arc::clone(&refused));
            let pages = Arc::clone(&pages);
            flood.spawn(async move {
                while go.load(Ordering::Relaxed) {
                    let answer = client.get(&url).send().await.expect("an answer");
                    let status = answer.status();
                    match status {
                        StatusCode::OK => answered.fetch_add(1, Ordering::Relaxed),
                        StatusCode::TOO_MANY_REQUESTS => {
                            assert_eq!(answer.headers()[header::RETRY_AFTER], "1");
                            refused.fetch_add(1, Ordering::Relaxed)
                        }
                        status => panic!("{status}"),
                    };
                    if let (StatusCode::OK, Ok(page)) = (status, answer.bytes().await) {
                        pages.lock().unwrap().insert(page);
                    }
                    // The client shares the machine with the node: an unpaced flood would measure the client.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            });
        }
    }
    let asked = || answered.load(Ordering::Relaxed) + refused.load(Ordering::Relaxed);
    until("the flood is on", Duration::from_secs(30), async || (asked() > 400).then_some(())).await;
    let during = p99_over_grpc(&node).await;
    for probe in ["/healthz", "/readyz"] {
        for _ in 0..20 {
            assert_eq!(node.rest.text(probe).await.0, StatusCode::OK, "{probe}");
        }
    }
    go.store(false, Ordering::Relaxed);
    while let Some(ended) = flood.join_next().await {
        ended.unwrap();
    }
    println!("{} bytes of metrics", node.rest.text("/metrics").await.1.len());
    // 17 at once, then 4 per second, and the API description.
    let (differ, most) =
        (pages.lock().unwrap().len(), 18 + 4 * (usize::try_from(started.elapsed().as_secs()).unwrap() + 1));
    println!("{differ} pages that differ, of at most {most}");
    println!("{answered:?} pages, {refused:?} refused");
    assert!(differ <= most, "{differ} pages that differ, of at most {most}");
    assert_latency_nearly_unchanged(before, during);
    assert!(answered.load(Ordering::Relaxed) > 0 && refused.load(Ordering::Relaxed) > 0);
}

/// A page counts until it is sent: a client that does not read holds few of them, and other addresses have a bound of
/// their own. Seen to fail when the slot was freed at the start of the answer.
#[tokio::test]
async fn unread_pages_are_bounded() {
    let node = memory_node(&shop(100)).await;
    let url = |page: &str| format!("http://{}{page}", node.http_address);
    let client = http().http2_prior_knowledge().http2_initial_stream_window_size(16_384).build().unwrap();
    let mut unread = Vec::new();
    for _ in 0..16 {
        let answer = client.get(url("/openapi.json")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        unread.push(answer);
    }
    for page in ["/openapi.json", "/metrics"] {
        let (status, output) = node.rest.json(page).await;
        assert_eq!((status, &output["error"]["code"]), (StatusCode::TOO_MANY_REQUESTS, &"resource_exhausted".into()));
    }
    assert_eq!(node.rest.text("/healthz").await.0, StatusCode::OK);
    assert_eq!(node.rest.text("/readyz").await.0, StatusCode::OK);
    drop(unread);
    until("there is room again", Duration::from_secs(10), async || {
        (node.rest.text("/metrics").await.0 == StatusCode::OK).then_some(())
    })
    .await;
}

/// Seen to fail when no `ETag` was compared.
#[tokio::test]
async fn the_openapi_description_has_an_etag() {
    let node = memory_node(&shop(100)).await;
    let ask = |known: Option<&str>| {
        let request = node.rest.request(reqwest::Method::GET, "/openapi.json");
        known.map_or(request.try_clone().unwrap(), |known| request.header(header::IF_NONE_MATCH, known)).send()
    };
    let whole = ask(None).await.unwrap();
    assert_eq!(whole.headers()[header::CONTENT_TYPE], "application/json");
    let tag = whole.headers()[header::ETAG].to_str().unwrap().to_owned();
    assert!(!whole.bytes().await.unwrap().is_empty());
    for (known, status) in [
        (tag.clone(), StatusCode::NOT_MODIFIED),
        (format!("\"x\", W/{tag}"), StatusCode::NOT_MODIFIED),
        ("*".to_owned(), StatusCode::NOT_MODIFIED),
        ("\"x\"".to_owned(), StatusCode::OK),
    ] {
        let answer = ask(Some(&known)).await.unwrap();
        assert_eq!((answer.status(), &answer.headers()[header::ETAG]), (status, &tag.parse().unwrap()), "{known}");
        assert_eq!(answer.bytes().await.unwrap().is_empty(), status == StatusCode::NOT_MODIFIED, "{known}");
    }
}
