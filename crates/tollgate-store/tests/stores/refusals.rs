//! The log of refusals, the same on both stores: the last fifty of each account, newest first.

use tollgate_core::claim::Partition;
use tollgate_store::{
    redis::RedisClient,
    refusals::{MAX_REFUSALS, Refusal, RefusalLog, memory::MemoryRefusals, redis::RedisRefusals},
    testing::RedisServer,
};

fn refusal(number: u64) -> Refusal {
    let key = number.is_multiple_of(2).then(|| format!("key {number}"));
    Refusal { key, resource: "\"résource\"\n".into(), tier: "paid".into(), label: "RPM".into(), at_ms: number }
}

#[tokio::test]
async fn the_last_fifty_of_each_account_newest_first() {
    let server = RedisServer::start();
    let config = server.config();
    let logs: [Box<dyn RefusalLog>; 2] =
        [Box::new(MemoryRefusals::new(100)), Box::new(RedisRefusals::on(RedisClient::open(config).unwrap()))];
    let [one, two] = ["one", "two"].map(|name| Partition::of(["account", name]));
    for log in logs {
        assert_eq!(log.latest(one).await.unwrap(), []);
        let mut expected: Vec<Refusal> = Vec::new();
        for batch in [1_u64, 7, 50, 1, 30] {
            let from = expected.len() as u64;
            let refusals: Vec<Refusal> = (from..from + batch).map(refusal).collect();
            log.append(one, &refusals).await.unwrap();
            expected.extend(refusals);
            let newest_first: Vec<Refusal> = expected.iter().rev().take(MAX_REFUSALS).cloned().collect();
            assert_eq!(log.latest(one).await.unwrap(), newest_first);
        }
        log.append(two, &[refusal(1)]).await.unwrap();
        assert_eq!(log.latest(two).await.unwrap(), [refusal(1)]);
        assert_eq!(log.latest(one).await.unwrap().len(), MAX_REFUSALS);
    }
}

#[tokio::test]
async fn memory_forgets_the_account_that_was_refused_longest_ago() {
    let log = MemoryRefusals::new(2);
    let accounts = ["one", "two", "three"].map(|name| Partition::of([name]));
    for account in [0, 1, 0, 2] {
        log.append(accounts[account], &[refusal(1)]).await.unwrap();
    }
    let mut counts = Vec::new();
    for account in accounts {
        counts.push(log.latest(account).await.unwrap().len());
    }
    assert_eq!(counts, [2, 0, 1]);
}
