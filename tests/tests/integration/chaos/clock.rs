//! Redis's clock jumps under load. Every decision must equal that of an exact log in which, at each call, events dated
//! in the future count as events of now. (The steps are so long that the clock does not come near these events again.)

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::MissedTickBehavior};
use tollgate_store::{
    clock::{Clock, SystemClock},
    testing::{Program, RedisServer},
};

use super::{
    assert_every_counter_expires,
    load::{CALLERS, DEADLINE, LONGEST, NodeGroup, PACE, SLACK},
};
use crate::harness::{account, allowed, call, consume, decided_at_ms};

/// The limit of the resource `short`.
const LIMIT: usize = 20;
const WINDOW_MS: u64 = 2_000;
/// Offsets of Redis's clock from real time, in seconds, one after another.
const STEPS: [i64; 8] = [0, 10, 0, 60, 0, 3_600, -3_600, 0];
/// Duration of each offset: longer than a window, so that capacity returns.
const PHASE: Duration = Duration::from_secs(3);
/// Bound on the time between a decision and its answer.
const LATEST_ANSWER_MS: u64 = 500;

struct Observation {
    answered_ms: u64,
    decided_ms: u64,
    admitted: bool,
    latency: Duration,
}

/// Runs on Redis 6.2, whose allocator works with libfaketime.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "bound in time: tests/run runs it alone"]
async fn decisions_stay_exact_while_the_redis_clock_jumps() {
    let redis = RedisServer::start_program(Program::OwnClock, &[]);
    let node_group = NodeGroup::start(&redis.url(), "deny").await;
    let usage_before = node_group.resource_usage();
    let go = Arc::new(AtomicBool::new(true));
    let mut callers = JoinSet::new();
    for grpc in node_group.clients() {
        for _ in 0..CALLERS {
            let (grpc, go) = (grpc.clone(), Arc::clone(&go));
            callers.spawn(async move {
                let mut ticks = tokio::time::interval(PACE);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let mut observations = Vec::new();
                while go.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    let started = Instant::now();
                    let decision = consume(&grpc, call(account("steps"), "short", &[])).await.expect("no call fails");
                    let (latency, answered_ms) = (started.elapsed(), SystemClock.now().as_ms());
                    let (decided_ms, admitted) = (decided_at_ms(&decision), allowed(&decision));
                    observations.push(Observation { answered_ms, decided_ms, admitted, latency });
                }
                observations
            });
        }
    }
    let mut phase_starts = Vec::new();
    for step in STEPS {
        redis.set_clock(step);
        phase_starts.push(SystemClock.now().as_ms());
        tokio::time::sleep(PHASE).await;
        assert_every_counter_expires(&[&redis]);
    }
    go.store(false, Ordering::Relaxed);
    let observations: Vec<Observation> = callers.join_all().await.into_iter().flatten().collect();

    let (most, longest_wait_ms) = check_against_exact_log(&observations, &phase_starts);
    let mut latency: Vec<Duration> = observations.iter().map(|observation| observation.latency).collect();
    latency.sort_unstable();
    let (p99, longest) = (latency[latency.len() * 99 / 100], latency[latency.len() - 1]);
    let growth = node_group.resource_usage().growth_since(usage_before);
    println!(
        "| Redis's clock steps by 10 s, a minute and an hour, forward and back | {} | 0 | {} ms | {} ms | {longest_wait_ms} ms | \
         {most} of {LIMIT} | {growth} |",
        observations.len(),
        p99.as_millis(),
        longest.as_millis(),
    );
    assert!(p99 <= DEADLINE + SLACK && longest <= DEADLINE + LONGEST, "{p99:?}, {longest:?}");
    growth.check("Redis's clock steps");
    node_group.assert_no_panic();
}

/// Checks every decision. Returns the peak usage of a window, and the longest time without an admission after a jump,
/// in ms.
fn check_against_exact_log(observations: &[Observation], phase_starts: &[u64]) -> (usize, u64) {
    let mut log: Vec<(usize, u64, bool)> = observations
        .iter()
        .map(|observation| (phase_of(observation, phase_starts), observation.decided_ms, observation.admitted))
        .collect();
    log.sort_unstable();
    let (mut dates, mut most, mut longest_wait_ms) = (Vec::<u64>::new(), 0, 0);
    for same_time in log.chunk_by(|one, other| (one.0, one.1) == (other.0, other.1)) {
        let (phase, now, _) = same_time[0];
        let admitted = same_time.iter().filter(|(.., admitted)| *admitted).count();
        dates = dates.into_iter().map(|date| now.min(date)).collect();
        dates.retain(|date| date + WINDOW_MS > now);
        dates.extend(std::iter::repeat_n(now, admitted));
        assert!(dates.len() <= LIMIT, "{} in a window at {now}, phase {phase}", dates.len());
        assert!(
            admitted == same_time.len() || dates.len() == LIMIT,
            "refused with {} of {LIMIT} used at {now}, phase {phase}",
            dates.len()
        );
        most = dates.len().max(most);
    }
    for (phase, phase_starts) in phase_starts.iter().enumerate() {
        let of_phase: Vec<u64> =
            log.iter().filter(|(of, ..)| *of == phase).map(|(_, at, _)| real_ms(*at, STEPS[phase])).collect();
        assert!(of_phase.len() > 300, "too little load in phase {phase}: {}", of_phase.len());
        let first = log.iter().find(|(of, _, admitted)| *of == phase && *admitted);
        let waited = first.map(|(_, at, _)| real_ms(*at, STEPS[phase]).saturating_sub(*phase_starts));
        assert!(waited.is_some_and(|waited| waited <= WINDOW_MS + LATEST_ANSWER_MS), "{waited:?} in phase {phase}");
        longest_wait_ms = longest_wait_ms.max(waited.unwrap_or(0));
    }
    (most, longest_wait_ms)
}

/// The phase of a decision, from the time of its answer and from its own time.
fn phase_of(observation: &Observation, phase_starts: &[u64]) -> usize {
    let of: Vec<usize> = (0..phase_starts.len())
        .filter(|phase| {
            let real = real_ms(observation.decided_ms, STEPS[*phase]);
            let end = phase_starts.get(phase + 1).copied().unwrap_or(u64::MAX);
            // The clock was set a moment before the phase start was recorded.
            (real..=real + LATEST_ANSWER_MS).contains(&observation.answered_ms)
                && phase_starts[*phase] <= real + LATEST_ANSWER_MS
                && real <= end
        })
        .collect();
    assert_eq!(of.len(), 1, "decided at {}, answered at {}: {of:?}", observation.decided_ms, observation.answered_ms);
    of[0]
}

/// The real time at which Redis's clock, offset by `step` seconds, showed `at`.
fn real_ms(at: u64, step: i64) -> u64 {
    at.saturating_add_signed(-1_000 * step)
}
