//! The life of a process: settings, commands, start, shutdown.
//!
//! Seen to fail with gRPC that ignores the shutdown, and with a file that overrides variables and flags.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tollgate_store::testing::RedisServer;
use tonic::Code;

use crate::{
    grpc::{SuspendedRedis, node_on},
    harness::{ProcessBuilder, account, allowed, call, consume, folder_with, memory_node, shop, until},
};

/// Calls in work when SIGTERM comes are answered; later ones are refused as UNAVAILABLE or not accepted at all.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_drops_no_open_call() {
    let (_folder, policy) = folder_with(&shop(100));
    let mut node = ProcessBuilder::new(&policy).arg("--drain-timeout-ms=8000").start();
    let (go, done) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let mut callers = tokio::task::JoinSet::new();
    for number in 0..16 {
        let (grpc, rest) = (node.grpc.clone(), node.rest.clone());
        let (go, done) = (Arc::clone(&go), Arc::clone(&done));
        callers.spawn(async move {
            while go.load(Ordering::Relaxed) {
                if number % 2 == 0 {
                    match consume(&grpc, call(account("load"), "bulk", &[])).await {
                        Ok(decision) => assert!(allowed(&decision)),
                        // The node has stopped: the connection is refused, or was closed before the call was sent
                        // (hyper's `Canceled`), or the server went away in good order before it accepted the call
                        // (HTTP/2 GOAWAY without an error).
                        Err(error) => {
                            let error_text = format!("{error:?}");
                            let unsent = error_text.contains("hyper::Error(Canceled")
                                || (error_text.contains("GoAway") && error_text.contains("NO_ERROR"));
                            let gone = error.code() == Code::Unavailable || unsent;
                            return if gone { Ok(()) } else { Err(format!("{error:?}")) };
                        }
                    }
                } else {
                    let body = r#"{"caller":{"account":"load"},"resource":"bulk"}"#;
                    let request = rest.request(reqwest::Method::POST, "/v1/consume");
                    let sent = request.header("content-type", "application/json").body(body).send().await;
                    match sent {
                        Ok(answer) if answer.status().is_success() => drop(answer.bytes().await),
                        Ok(answer) => return Err(format!("HTTP {}", answer.status())),
                        Err(_) => return Ok(()),
                    }
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    until("calls are made", Duration::from_secs(10), async || (done.load(Ordering::Relaxed) > 200).then_some(())).await;
    let report = Instant::now();
    node.signal("TERM");
    let status = node.ended(Duration::from_secs(10)).await;
    assert!(report.elapsed() < Duration::from_secs(5), "idle, it waited for its bound: {:?}", report.elapsed());
    go.store(false, Ordering::Relaxed);
    assert_eq!(status.code(), Some(0), "{}", node.stderr());
    let wrong: Vec<String> = callers.join_all().await.into_iter().filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(node.stderr().contains("node stopped"), "{}", node.stderr());
}

/// Calls that wait for Redis at SIGTERM get their decision.
#[tokio::test]
async fn sigterm_lets_open_calls_finish() {
    let redis = RedisServer::start();
    let (_folder, mut node) = node_on(&redis, 8_000);
    let one = || call(account("a"), "model", &[]);
    assert!(allowed(&consume(&node.grpc, one()).await.unwrap()));
    let suspended = SuspendedRedis::suspend(&redis);
    let (grpc, rest) = (node.grpc.clone(), node.rest.clone());
    let over_grpc = tokio::spawn(async move { consume(&grpc, one()).await });
    let body = r#"{"caller":{"account":"a"},"resource":"model"}"#;
    let over_rest = tokio::spawn(async move { rest.post("/v1/consume", body).await });
    until("both calls wait for Redis", Duration::from_secs(5), async || {
        node.rest.text("/metrics").await.1.contains("tollgate_store_in_flight{store=\"redis\"} 2").then_some(())
    })
    .await;
    node.signal("TERM");
    until("it takes no more calls", Duration::from_secs(5), async || {
        tokio::net::TcpStream::connect(&node.grpc_address).await.err()
    })
    .await;
    drop(suspended);
    assert!(allowed(&over_grpc.await.unwrap().expect("a decision")));
    let (status, answer) = over_rest.await.unwrap();
    assert_eq!((status.as_u16(), &answer["verdict"]), (200, &"allowed".into()), "{answer}");
    let status = node.ended(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(0), "{}", node.stderr());
}

/// An unfinished request delays the exit by no more than the bound.
#[tokio::test]
async fn shutdown_takes_no_longer_than_its_bound() {
    use tokio::io::AsyncWriteExt;
    let (_folder, policy) = folder_with(&shop(100));
    let mut node = ProcessBuilder::new(&policy).arg("--drain-timeout-ms=500").start();
    let address = node.first_line.split("REST on http://").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let mut half = tokio::net::TcpStream::connect(&address).await.unwrap();
    half.write_all(
        b"POST /v1/consume HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{",
    )
    .await
    .unwrap();
    // The node answers another request, so it has received the unfinished one.
    assert_eq!(node.rest.text("/healthz").await.0.as_u16(), 200);
    let report = Instant::now();
    node.signal("TERM");
    let status = node.ended(Duration::from_secs(5)).await;
    assert_eq!(status.code(), Some(0), "{}", node.stderr());
    assert!(report.elapsed() < Duration::from_secs(4), "{:?}", report.elapsed());
}

#[tokio::test]
async fn a_node_in_this_process_stops_at_its_shutdown_signal() {
    let mut node = memory_node(&shop(100)).await;
    assert!(allowed(&consume(&node.grpc, call(account("a"), "model", &[])).await.unwrap()));
    let ended = tokio::time::timeout(Duration::from_secs(5), node.stop()).await;
    ended.expect("it stops").expect("without an error");
}

#[test]
fn a_node_open_to_the_network_does_not_start() {
    for (setting, address) in [("http-listen", "0.0.0.0:0"), ("grpc-listen", "0.0.0.0:0"), ("http-listen", "[::]:0")] {
        let (status, stdout, stderr) = ProcessBuilder::bare().arg(format!("--{setting}={address}")).output();
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(stdout.is_empty(), "{stdout}");
        assert!(stderr.starts_with(&format!("{setting}: ")), "{stderr}");
        assert!(stderr.contains("loopback"), "{stderr}");
    }
}

#[test]
fn a_node_with_an_invalid_policy_does_not_start() {
    let (_folder, policy) = folder_with(&shop(100).replace("default_tier: paid", "default_tier: gold"));
    let (status, _, stderr) = ProcessBuilder::new(&policy).output();
    assert_eq!(status.code(), Some(1), "{stderr}");
    let line = 1 + shop(100).lines().position(|line| line.starts_with("default_tier")).unwrap();
    assert!(stderr.contains(&format!("policy.yaml:{line}: default_tier")), "{stderr}");
}

#[test]
fn check_policy_reports_every_mistake() {
    let broken = shop(100)
        .replace("limit: 20000", "limit: -1")
        .replace("per: 2s", "per: 0s")
        .replace("model: { class: text }", "model: { class: nonsense, color: red }")
        .replace("default_tier: paid", "default_tier: gold");
    let (_folder, policy) = folder_with(&broken);
    let (status, _, stderr) = ProcessBuilder::bare().arg("check-policy").arg(&policy).output();
    assert_eq!(status.code(), Some(1), "{stderr}");
    for text in ["limit: -1", "per: 0s", "color: red", "default_tier: gold"] {
        let line = 1 + broken.lines().position(|line| line.contains(text)).unwrap();
        assert!(stderr.contains(&format!("policy.yaml:{line}: ")), "{text} (line {line}): {stderr}");
    }
    let (status, _, stderr) = ProcessBuilder::bare().arg("check-policy").arg("/nowhere.yaml").output();
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("/nowhere.yaml"), "{stderr}");
}

#[test]
fn check_policy_accepts_what_is_deployed() {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/policies");
    let domains = ["deapi", "tiered-chat", "venice"];
    for name in domains {
        let file = policies.join(format!("{name}.yaml"));
        let (status, stdout, stderr) = ProcessBuilder::bare().arg("check-policy").arg(file).output();
        assert_eq!(status.code(), Some(0), "{stderr}");
        assert!(stdout.starts_with(&format!("{name}: ")), "{stdout}");
    }
    let (_, stdout, _) = ProcessBuilder::bare().arg("check-policy").arg(&policies).output();
    let checked: Vec<&str> = stdout.lines().filter_map(|line| line.split(':').next()).collect();
    assert_eq!(checked, domains);
}

#[test]
fn help_names_every_setting_and_its_variable() {
    let (status, help, _) = ProcessBuilder::bare().arg("--help").output();
    assert_eq!(status.code(), Some(0));
    let flags: Vec<&str> = help.lines().filter_map(|line| line.trim_start().strip_prefix("--")).collect();
    let settings: Vec<&str> = flags.iter().filter_map(|line| line.split([' ', '[']).next()).collect();
    assert!(settings.len() >= 16, "{settings:?}");
    let unwrapped = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for setting in &settings {
        let variable = match *setting {
            "redis" => "TOLLGATE_REDIS_URL".to_owned(),
            setting => format!("TOLLGATE_{}", setting.replace('-', "_").to_uppercase()),
        };
        assert!(unwrapped.contains(&format!("[env: {variable}")), "no {variable} for --{setting} in {help}");
    }
    for command in ["check-policy", "policy-schema", "openapi", "generate-key", "hash-key"] {
        assert!(help.contains(command), "no {command}");
    }
}

#[test]
fn help_does_not_show_the_password_of_redis() {
    let secret = "redis://:hunter2-hunter2@127.0.0.1:1";
    let (_, help, _) = ProcessBuilder::bare().env("TOLLGATE_REDIS_URL", secret).arg("--help").output();
    assert!(!help.contains("hunter2"), "{help}");
}

/// Precedence: flag, variable, file, default.
#[tokio::test]
async fn flags_override_variables_and_variables_override_the_file() {
    let limit = async |node: &crate::harness::Process| {
        let body = format!("{}{}", " ".repeat(3_000), r#"{"caller":{"account":"a"},"resource":"model"}"#);
        node.rest.post("/v1/check", body).await.0.as_u16()
    };
    let (_folder, policy) = folder_with(&shop(100));
    let config = policy.with_file_name("tollgate.conf");
    let listen = "http-listen: 127.0.0.1:0\ngrpc-listen: 127.0.0.1:0\n";
    let own = format!("policy: [{}]\nopen-loopback: true\n", policy.display());
    std::fs::write(&config, format!("{listen}{own}max-request-bytes: 1000\n")).unwrap();
    let from_file = || ProcessBuilder::bare().arg("--config").arg(&config);

    let node = from_file().start();
    assert_eq!(limit(&node).await, 413, "the file");
    let (_, ready) = node.rest.json("/readyz").await;
    assert_eq!(ready["domains"], serde_json::json!(["shop"]));
    let node = from_file().env("TOLLGATE_MAX_REQUEST_BYTES", "100000").start();
    assert_eq!(limit(&node).await, 200, "the variable before the file");
    let node = from_file().env("TOLLGATE_MAX_REQUEST_BYTES", "100000").arg("--max-request-bytes=2000").start();
    assert_eq!(limit(&node).await, 413, "the flag before the variable");
    let node =
        ProcessBuilder::bare().env("TOLLGATE_CONFIG", &config).env("TOLLGATE_MAX_REQUEST_BYTES", "100000").start();
    assert_eq!(limit(&node).await, 200, "the file of the variable");
}

#[test]
fn a_wrong_configuration_file_is_named() {
    let (_folder, config) = folder_with("http-listen: 127.0.0.1:0\nhttp-port: 80\n");
    let (status, _, stderr) = ProcessBuilder::bare().arg("--config").arg(&config).output();
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("policy.yaml") && stderr.contains("http-port"), "{stderr}");
    let (status, _, stderr) = ProcessBuilder::bare().arg("--config=/nowhere.yaml").output();
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("/nowhere.yaml"), "{stderr}");
    let (status, _, stderr) = ProcessBuilder::bare().arg("--max-request-bytes=0").output();
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("max-request-bytes"), "{stderr}");
}

/// The commands printed by a node without settings work when pasted: a call, its limits, and the same call over gRPC.
/// Seen to fail with exchanged ports, without the content type, with another key, and without `call` around the gRPC
/// call.
#[tokio::test]
async fn the_command_printed_for_the_embedded_policy_works() {
    let node = ProcessBuilder::bare().arg("--http-listen=127.0.0.1:0").arg("--grpc-listen=127.0.0.1:0").start();
    let commands = until("it says what to try", Duration::from_secs(10), async || {
        let error_text = node.stdout();
        let commands: Vec<String> =
            error_text.lines().map(str::trim).filter(|line| line.contains("curl ")).map(ToOwned::to_owned).collect();
        (commands.len() == 3).then_some(commands)
    })
    .await;
    let pasted = |command: &str| -> serde_json::Value {
        let done = std::process::Command::new("bash").args(["-c", command]).output().unwrap();
        serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{command}: {done:?}"))
    };
    let decision = pasted(&commands[0]);
    assert_eq!(decision["verdict"], "allowed", "{decision}");
    let limits = pasted(&commands[1]);
    assert_eq!(limits["data"]["apiTier"]["id"], "paid", "{limits}");
    // The last command needs a program that may be missing; the test sends the same call itself.
    let json = |command: &str| -> serde_json::Value {
        serde_json::from_str(command.split('\'').find(|part| part.starts_with('{')).unwrap()).unwrap()
    };
    assert_eq!(json(&commands[2])["call"], json(&commands[0]));
    let to = format!(" {} tollgate.v1.RateLimitService/Consume", node.grpc_address);
    assert!(commands[2].starts_with("grpcurl -plaintext ") && commands[2].ends_with(&to), "{commands:?}");
}

/// The first transcript of the README equals a real run, except for addresses and times. (Seen to fail with another
/// word in the output, and with another limit in the answer.)
#[tokio::test]
async fn the_readme_transcript_matches_a_real_run() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let block = readme.split("```console\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let node = ProcessBuilder::bare().arg("--http-listen=127.0.0.1:0").arg("--grpc-listen=127.0.0.1:0").start();
    let block = block.replace("127.0.0.1:8080", &node.http_address).replace("127.0.0.1:8081", &node.grpc_address);
    let mut commands = block.split("$ ").skip(1).map(|command| command.split_once('\n').unwrap());

    let (command, printed) = commands.next().unwrap();
    assert_eq!(command, "cargo run --release");
    let (printed, _) = printed.split_once("…\n").expect("there is more than is shown");
    until(&format!("it prints {printed}"), Duration::from_secs(10), async || {
        (node.first_line.clone() + &node.stdout()).starts_with(printed).then_some(())
    })
    .await;

    let (command, answer) = commands.next().unwrap();
    assert!(printed.contains(&format!("  {command}\n")), "{command} is not what it says to paste");
    let done = std::process::Command::new("bash").args(["-c", command]).output().unwrap();
    // The README breaks the line for readability.
    let shown: String = answer.lines().map(str::trim).collect();
    assert_eq!(without_times(&String::from_utf8_lossy(&done.stdout)), without_times(&shown));
    assert_eq!(commands.next(), None);
}

/// The JSON with all times replaced.
fn without_times(json: &str) -> String {
    let is_time = |text: &str| text.len() == 24 && text.ends_with('Z') && text.as_bytes()[10] == b'T';
    let parts = json.split('"').map(|part| if is_time(part) { "a time" } else { part });
    parts.collect::<Vec<_>>().join("\"")
}

/// A node without settings runs the embedded policy; the demo key is valid only there.
#[tokio::test]
async fn the_demo_key_works_with_the_embedded_policy_only() {
    let demo = concat!("tg_demoVeniceKey", "ForLoopbackUseOnly04QjPeg");
    let body =
        serde_json::json!({ "caller": { "api_key": demo }, "resource": "llama-3.3-70b", "usage": { "tokens": 1500 } });
    let embedded = ProcessBuilder::bare().arg("--http-listen=127.0.0.1:0").arg("--grpc-listen=127.0.0.1:0").start();
    let (_, answer) = embedded.rest.post("/v1/consume", body.to_string()).await;
    assert_eq!(answer["verdict"], "allowed", "{answer}");
    let limits = embedded.rest.limits(demo).await;
    assert_eq!(limits["data"]["apiTier"]["id"], "paid");
    let venice = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/policies/venice.yaml");
    let given = ProcessBuilder::new(&venice).start();
    let (_, answer) = given.rest.post("/v1/consume", body.to_string()).await;
    assert_eq!((&answer["verdict"], &answer["reason"]), (&"denied".into(), &"unknown_key".into()), "{answer}");
}

/// Scripts wait for the first line of a node and then call it.
///
/// Seen to fail when the line was printed before the policy was read.
#[test]
fn a_node_prints_its_address_once_it_can_decide() {
    let (_folder, good) = folder_with(&shop(100));
    let (_other, bad) = folder_with("nothing of the kind");
    for node in [ProcessBuilder::new(&bad), ProcessBuilder::new(&good).arg("--service-tokens=/nowhere")] {
        let (status, error_text, error) = node.output();
        assert!(!status.success() && !error.is_empty(), "{error_text} {error}");
        assert_eq!(error_text, "", "{error}");
    }
}
