//! Files that block, or that have unsafe permissions: a node reports them, keeps working, reads all other files, and
//! stops when told to.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use reqwest::Method;

use crate::harness::{Process, ProcessBuilder, account, call, consume, folder_with, hash_of, shop, until};

const OLD: &str = "tgt_integration-token-of-the-shop-0123456789";
const NEW: &str = "tgt_integration-the-next-token-of-the-shop-2718281828";
const BOUND: Duration = Duration::from_secs(30);

fn fifo(path: &Path) {
    let _ = std::fs::remove_file(path);
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn tokens(token: &str) -> String {
    format!("tokens: [{{ name: shop, hash: '{}', domains: all }}]\n", hash_of(token))
}

/// Replaces the file atomically.
fn replace(file: &Path, text: &str) {
    let beside = file.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(&beside, file).unwrap();
}

/// A policy file, and a token file beside it.
struct Files {
    folder: tempfile::TempDir,
    policy: PathBuf,
    tokens: PathBuf,
}

impl Files {
    fn new() -> Self {
        let (folder, policy) = folder_with(&shop(10));
        let tokens_file = folder.path().join("tokens.yaml");
        std::fs::write(&tokens_file, tokens(OLD)).unwrap();
        Self { folder, policy, tokens: tokens_file }
    }

    fn builder(&self) -> ProcessBuilder {
        let builder = ProcessBuilder::new(&self.policy).arg("--service-tokens").arg(&self.tokens);
        builder.arg("--max-login-failures=0").arg("--drain-delay-ms=0")
    }
}

/// The HTTP status of a REST call.
async fn status(node: &Process, token: &str) -> u16 {
    let request = node.rest.request(Method::POST, "/v1/consume").bearer_auth(token);
    let request = request.json(&serde_json::json!({ "caller": { "account": "a" }, "resource": "free" }));
    request.send().await.unwrap().status().as_u16()
}

async fn status_is(node: &Process, token: &str, expected: u16) {
    until(&format!("{token}: {expected}"), BOUND, async || (status(node, token).await == expected).then_some(())).await;
}

/// Waits until the detail of this part of `/readyz` is as expected.
async fn detail_is(node: &Process, part: &str, expected: Option<&str>) {
    until(&format!("{part}: {expected:?}"), BOUND, async || {
        let (_, ready) = node.rest.json("/readyz").await;
        let is = ready[part]["detail"].as_str() == expected && ready[part]["ok"] == expected.is_none();
        (is && ready["ready"] == true).then_some(())
    })
    .await;
}

/// A FIFO in place of a file delays neither reload nor exit, and is reported as what it is. (Seen to fail when any file
/// type is opened: the reload, and the exit, then wait for a writer forever.)
#[tokio::test]
async fn a_fifo_delays_neither_reload_nor_exit() {
    let files = Files::new();
    let secret = files.folder.path().join("secret");
    let plain = "tokens: [{ name: shop, file: secret, domains: all }]\n";
    let mut node = files.builder().start();
    status_is(&node, OLD, 200).await;
    fifo(&files.policy);
    node.signal("HUP");
    detail_is(&node, "policies", Some("not reloaded")).await;
    // The other file is still reloaded: a token is revoked.
    replace(&files.tokens, &tokens(NEW));
    node.signal("HUP");
    status_is(&node, OLD, 401).await;
    assert_eq!(status(&node, NEW).await, 200);
    fifo(&files.tokens);
    node.signal("HUP");
    detail_is(&node, "credentials", Some("not reloaded")).await;
    fifo(&secret);
    replace(&files.tokens, plain);
    node.signal("HUP");
    until("the report names the FIFO", BOUND, async || {
        let error_text = node.stderr();
        let lines =
            ["policy.yaml:1: is a FIFO", "tokens.yaml: is a FIFO", "tokens[0].file: the file that it names: is a FIFO"];
        lines.iter().all(|line| error_text.contains(line)).then_some(())
    })
    .await;
    assert_eq!(status(&node, NEW).await, 200, "what was there stays");
    // Regular files in their place are read.
    replace(&files.policy, &shop(10));
    std::fs::remove_file(&secret).unwrap();
    std::fs::write(&secret, OLD).unwrap();
    node.signal("HUP");
    status_is(&node, OLD, 200).await;
    detail_is(&node, "policies", None).await;
    detail_is(&node, "credentials", None).await;
    fifo(&files.policy);
    node.signal("HUP");
    detail_is(&node, "policies", Some("not reloaded")).await;
    node.signal("TERM");
    assert!(node.ended(BOUND).await.success());
}

/// Every file that is read at start. (Opening a FIFO would block.)
#[test]
fn a_fifo_in_place_of_any_file_is_refused_at_once() {
    let files = Files::new();
    let pipe = files.folder.path().join("pipe.yaml");
    fifo(&pipe);
    let node = |setting: &str| files.builder().arg(format!("--{setting}={}", pipe.display()));
    let bare = |first: &str| ProcessBuilder::bare().arg(first).arg(&pipe);
    let folder = files.folder.path().join("policies");
    std::fs::create_dir(&folder).unwrap();
    fifo(&folder.join("one.yaml"));
    let client = ["account", "list", "--url=http://127.0.0.1:1"];
    for (what, command) in [
        ("check-policy", bare("check-policy")),
        ("check-policy of a folder", ProcessBuilder::bare().arg("check-policy").arg(&folder)),
        ("policy", ProcessBuilder::new(&pipe)),
        ("config", bare("--config")),
        ("config of a command", bare("--config").args(client)),
        ("service tokens", ProcessBuilder::new(&files.policy).arg("--service-tokens").arg(&pipe)),
        ("admin tokens", node("admin-tokens")),
        ("certificate", node("tls-cert").arg("--tls-key").arg(&pipe)),
        ("redis password", node("redis-password-file").redis("redis://127.0.0.1:1")),
        ("redis authorities", node("redis-tls-ca").redis("rediss://127.0.0.1:1")),
        ("admin token", ProcessBuilder::bare().args(client).arg("--admin-token-file").arg(&pipe)),
        ("authorities", ProcessBuilder::bare().args(client).env("TOLLGATE_ADMIN_TOKEN", OLD).arg("--ca").arg(&pipe)),
    ] {
        let (status, _, stderr) = command.output();
        assert_eq!(status.code(), Some(1), "{what}: {stderr}");
        assert!(stderr.contains("is a FIFO, and must be a regular file"), "{what}: {stderr}");
    }
}

/// Builds a shared object that blocks each opening of the file in `HANGING` while the file in `HANGING_WHILE` exists:
/// it acts like a mount whose server is gone.
fn hanging_mount(folder: &Path) -> PathBuf {
    let (source, object) = (folder.join("mount.c"), folder.join("mount.so"));
    std::fs::write(
        &source,
        r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <stdarg.h>
        #include <stdlib.h>
        #include <string.h>
        #include <unistd.h>
        static int wait_and_open(const char *name, const char *path, int flags, int mode) {
            const char *hanging = getenv("HANGING"), *mark = getenv("HANGING_WHILE");
            if (hanging && mark && strcmp(path, hanging) == 0)
                while (access(mark, F_OK) == 0) usleep(5000);
            int (*open)(const char *, int, int) = (int (*)(const char *, int, int))dlsym(RTLD_NEXT, name);
            return open(path, flags, mode);
        }
        int open64(const char *path, int flags, ...) {
            va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest);
            return wait_and_open("open64", path, flags, mode);
        }
        int open(const char *path, int flags, ...) {
            va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest);
            return wait_and_open("open", path, flags, mode);
        }
        "#,
    )
    .unwrap();
    let mut cc = Command::new("cc");
    let compiled = cc.args(["-shared", "-fPIC", "-o"]).arg(&object).arg(&source).stdin(Stdio::null()).status();
    assert!(compiled.expect("cc, which Rust needs to link").success());
    object
}

/// A hanging mount is reported, and delays neither calls, nor other files, nor the exit. Its files are read as soon as
/// it answers. (Seen to fail without a bound on reads, and without a retry.)
#[tokio::test]
async fn a_hanging_mount_is_reported_and_delays_nothing_else() {
    let files = Files::new();
    let mount = tempfile::tempdir().unwrap();
    let (policy, mark) = (mount.path().join("policy.yaml"), files.folder.path().join("mark"));
    std::fs::write(&policy, shop(10)).unwrap();
    let builder = ProcessBuilder::new(&policy).arg("--service-tokens").arg(&files.tokens).arg("--drain-delay-ms=0");
    let builder = builder.arg("--max-login-failures=0").env("LD_PRELOAD", hanging_mount(files.folder.path()));
    let mut node = builder.env("HANGING", &policy).env("HANGING_WHILE", &mark).start();
    status_is(&node, OLD, 200).await;
    let stuck = |what: &str, is: u8| format!("tollgate_reload_stuck{{kind=\"{what}\"}} {is}");
    let (_, metrics) = node.rest.text("/metrics").await;
    for what in ["policies", "service_tokens"] {
        assert!(metrics.contains(&stuck(what, 0)), "{what}: {metrics}");
    }
    std::fs::write(&mark, "").unwrap();
    replace(&policy, &shop(20));
    node.signal("HUP");
    detail_is(&node, "policies", Some("stuck")).await;
    let (_, metrics) = node.rest.text("/metrics").await;
    assert!(metrics.contains(&stuck("policies", 1)) && metrics.contains(&stuck("service_tokens", 0)), "{metrics}");
    assert!(node.stderr().contains("the file system does not answer"), "{}", node.stderr());
    // Token files are on another mount, and are still reloaded.
    replace(&files.tokens, &tokens(NEW));
    node.signal("HUP");
    status_is(&node, OLD, 401).await;
    assert_eq!(status(&node, NEW).await, 200);
    std::fs::remove_file(&mark).unwrap();
    // No event reports that the mount answers again.
    detail_is(&node, "policies", None).await;
    let mut call = tonic::Request::new(tollgate_api::v1::CheckRequest { call: Some(call(account("a"), "model", &[])) });
    call.metadata_mut().insert("authorization", format!("Bearer {NEW}").parse().unwrap());
    let decision = node.grpc.clone().check(call).await.unwrap().into_inner().decision.unwrap();
    assert_eq!(decision.quotas[0].limit, Some(20), "what changed meanwhile is in force");
    std::fs::write(&mark, "").unwrap();
    node.signal("HUP");
    detail_is(&node, "policies", Some("stuck")).await;
    node.signal("TERM");
    assert!(node.ended(BOUND).await.success());
}

/// Unsafe permissions of a token file, and tokens for unknown domains, cause a warning after each read. (Seen to fail
/// without either warning, and with a warning for every file.)
#[tokio::test]
async fn a_token_file_with_unsafe_permissions_causes_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    let files = Files::new();
    let protect = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let (secret, admins) = (files.folder.path().join("secret"), files.folder.path().join("admins.yaml"));
    std::fs::write(&secret, OLD).unwrap();
    std::fs::write(&files.tokens, "tokens: [{ name: shop, file: secret, domains: [shop] }]").unwrap();
    std::fs::write(&admins, tokens(NEW)).unwrap();
    for path in [&files.tokens, &secret, &admins] {
        protect(path, 0o640);
    }
    let node = files.builder().arg("--admin-tokens").arg(&admins).start();
    status_is(&node, OLD, 200).await;
    assert!(!node.stderr().contains("WARN"), "{}", node.stderr());
    let warned = async |parts: &[&str]| {
        until(&format!("{parts:?}"), BOUND, async || {
            let error_text = node.stderr();
            error_text
                .lines()
                .any(|line| line.contains("WARN") && parts.iter().all(|part| line.contains(part)))
                .then_some(())
        })
        .await;
    };
    protect(&secret, 0o644);
    node.signal("HUP");
    warned(&["every user of this machine", "service_tokens", "tokens.yaml: tokens[0].file"]).await;
    assert!(!node.stderr().contains("admins.yaml"), "{}", node.stderr());
    protect(&admins, 0o604);
    node.signal("HUP");
    warned(&["every user of this machine", "admin_tokens", "admins.yaml"]).await;
    replace(&files.tokens, "tokens: [{ name: shop, file: secret, domains: [shop, shoes, tgt_misplaced] }]");
    warned(&["a token names a domain that no policy has", "service_tokens", "shop", "shoes"]).await;
    warned(&["a token names a domain that no policy has", "<13 characters>"]).await;
    assert!(!node.stderr().contains("tgt_misplaced"), "{}", node.stderr());
    // A removed domain causes the warning too, whichever file changed.
    let before = node.stderr().len();
    replace(&files.policy, &shop(10).replace("domain: shop", "domain: shoes"));
    until("the domain is missed", BOUND, async || {
        let error_text = node.stderr().split_off(before);
        error_text.lines().any(|line| line.contains("no policy has") && line.contains("\"shop\"")).then_some(())
    })
    .await;
    assert_eq!(
        consume(&node.grpc, call(account("a"), "free", &[])).await.unwrap_err().code(),
        tonic::Code::Unauthenticated
    );
}
