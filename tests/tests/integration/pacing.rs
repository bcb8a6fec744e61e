//! A client that calls exactly at its limit is never refused over gRPC, over an hour of injected time. The store tests
//! cover more rates (`crates/tollgate-store/tests/stores/promises.rs`).
//!
//! Seen to fail when an event leaves its window a millisecond late.

use crate::harness::{START, account, allowed, call, consume, memory_node, shop};

#[tokio::test]
async fn an_exactly_paced_client_is_never_refused_over_grpc() {
    let node = memory_node(&shop(100)).await;
    for number in 0..6_000 {
        node.clock.set(START.plus_ms(number * 600));
        let decision = consume(&node.grpc, call(account("paced"), "model", &[])).await.expect("a decision");
        assert!(allowed(&decision), "call {number}: {decision:?}");
        if number == 99 {
            let more = consume(&node.grpc, call(account("paced"), "model", &[])).await.expect("a decision");
            assert!(!allowed(&more), "the pace is not the limit");
        }
    }
}
