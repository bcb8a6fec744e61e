//! Rendered responses: on request, in the dialect of the call or of its domain.

use serde_json::{Value, json};
use tollgate_api::{
    rendered_in,
    v1::{Call, Caller, Decision, Reason, RenderedResponse, ReserveRequest, Upload},
};
use tollgate_store::testing::RedisServer;
use tonic::Code;

use crate::harness::{KEY, Node, account, allowed, api_key, call, consume, memory_node, peek, redis_node, shop};

/// The shop policy with a dialect of its own and a counter for each prompt.
fn shop_with_a_dialect() -> String {
    let own = r#"
dialect: own
dialects:
  own:
    headers:
      - { name: X-Own-Resource, value: resource }
      - { name: X-Own-Account, value: account }
    answers:
      quota_exceeded: { body: { "what": "{resource} of {account}", "wait": "{retry_after}" } }
"#;
    shop(2).replace(r#""prompt/*": { class: text }"#, r#""prompt/*": { class: text, counter: each }"#) + own
}

async fn rendered(node: &Node, call: Call) -> RenderedResponse {
    let call = Call { render: true, ..call };
    *consume(&node.grpc, call).await.expect("a decision").rendered.expect("a rendered answer")
}

fn header<'a>(answer: &'a RenderedResponse, name: &str) -> Option<&'a str> {
    answer.headers.iter().find(|header| header.name == name).map(|header| header.value.as_str())
}

#[tokio::test]
async fn a_call_chooses_its_dialect() {
    let node = memory_node(&shop_with_a_dialect()).await;
    let full = Call { usage: [("requests".to_owned(), 2)].into(), ..call(account("a"), "model", &[]) };
    assert_eq!(header(&rendered(&node, full).await, "X-Own-Resource"), Some("model"));
    let one_more = |dialect: &str| Call { dialect: dialect.to_owned(), ..call(account("a"), "model", &[]) };
    let own = rendered(&node, one_more("")).await;
    assert_eq!((own.status, own.body.as_str()), (429, r#"{"what":"model of a","wait":60}"#));
    assert_eq!(own, rendered(&node, one_more("own")).await);
    let ietf = rendered(&node, one_more("ietf")).await;
    assert_eq!(header(&ietf, "RateLimit"), Some(r#""requests_per_minute";r=0;t=60, "tokens_per_minute";r=20000"#));
    assert_eq!((header(&ietf, "Retry-After"), header(&ietf, "x-should-retry")), (Some("60"), None));
    let openai = rendered(&node, one_more("openai")).await;
    assert_eq!(header(&openai, "retry-after-ms"), Some("60000"));
    assert_eq!(rendered(&node, one_more("none")).await, RenderedResponse { status: 429, ..Default::default() });
}

/// A wait of an hour is longer than SDKs accept, and a call that never fits should not be retried.
#[tokio::test]
async fn sdks_receive_a_header_that_forbids_a_retry() {
    let node = memory_node(&shop(100)).await;
    let bulk = |requests| Call { dialect: "ietf".to_owned(), ..call(account("a"), "bulk", &[("requests", requests)]) };
    for (requests, status, wait, should_retry) in
        [(1_000_000, 200, None, None), (1, 429, Some("3600"), Some("false")), (1_000_001, 413, None, Some("false"))]
    {
        let answer = rendered(&node, bulk(requests)).await;
        assert_eq!(answer.status, status, "{requests}");
        assert_eq!(header(&answer, "Retry-After"), wait, "{requests}");
        assert_eq!(header(&answer, "x-should-retry"), should_retry, "{requests}");
    }
    // The hour ends in two minutes, which SDKs wait for.
    node.clock.advance_ms(3_480_000);
    let answer = rendered(&node, bulk(1)).await;
    assert_eq!((header(&answer, "Retry-After"), header(&answer, "x-should-retry")), (Some("120"), None));
}

#[tokio::test]
async fn headers_are_rendered_only_when_asked() {
    let node = memory_node(&shop_with_a_dialect()).await;
    let decision = consume(&node.grpc, call(account("a"), "model", &[])).await.unwrap();
    assert_eq!(decision.rendered, None);
    let body = r#"{"caller":{"account":"a"},"resource":"model"}"#;
    let (_, decision) = node.rest.post("/v1/consume", body).await;
    assert_eq!(decision.get("rendered"), None, "{decision}");
}

#[tokio::test]
async fn an_unknown_dialect_and_a_bad_upload_are_refused_before_anything_is_charged() {
    let node = memory_node(&shop_with_a_dialect()).await;
    let wrong = [
        (
            Call { dialect: "klingon".to_owned(), ..Call::default() },
            "dialect: there is no dialect \"klingon\"; there is: own, venice, ",
        ),
        (Call { dialect: "x".repeat(129), ..Call::default() }, "dialect: must have 1 to 128 bytes"),
        (
            Call { upload: Some(Upload { media_type: "pdf".to_owned(), ..Upload::default() }), ..Call::default() },
            "upload.media_type: must be ",
        ),
    ];
    for (wrong, prefix) in wrong {
        let call = Call { caller: Some(account("a")), resource: "model".to_owned(), ..wrong };
        let status = consume(&node.grpc, call.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(prefix), "{status:?}");
        let mut body = json!({ "caller": { "account": "a" }, "resource": "model", "dialect": call.dialect });
        if let Some(upload) = &call.upload {
            body["upload"] = json!({ "media_type": upload.media_type });
        }
        let (status, error) = node.rest.post("/v1/consume", body.to_string()).await;
        assert_eq!(status, 400);
        assert_eq!(
            error["error"]["message"].as_str().map(|message| message.starts_with(prefix)),
            Some(true),
            "{error}"
        );
    }
    let now = peek(&node.grpc, call(account("a"), "model", &[])).await.unwrap();
    assert!(now.quotas.iter().all(|quota| quota.used == 0), "{now:?}");
}

/// Names from callers can break neither a header nor a body.
#[tokio::test]
async fn names_cannot_break_a_rendered_response() {
    let node = memory_node(&shop_with_a_dialect()).await;
    let (prompt, account_id) = (r#"prompt/{limit}","wait":0,"é%"#, r#"a "b\ {retry_after}"#);
    let call = || call(account(account_id), prompt, &[("requests", 2)]);
    let admitted = rendered(&node, call()).await;
    assert_eq!(header(&admitted, "X-Own-Resource"), Some(r#"prompt/{limit}","wait":0,"%C3%A9%25"#));
    let refused = rendered(&node, call()).await;
    let body: Value = serde_json::from_str(&refused.body).unwrap();
    assert_eq!(body, json!({ "what": format!("{prompt} of {account_id}"), "wait": 60 }));
    assert_eq!(body.as_object().unwrap().len(), 2);
}

#[tokio::test]
async fn a_bad_key_is_a_rendered_401() {
    let node = memory_node(&shop_with_a_dialect().replace("dialect: own", "dialect: openai")).await;
    for (secret, reason) in [("sk-integration-revoked", "revoked_key"), ("sk-integration-expired", "expired_key")] {
        let answer = rendered(&node, call(api_key(secret), "model", &[])).await;
        assert_eq!(answer.status, 401);
        assert_eq!(header(&answer, "www-authenticate"), Some("Bearer"));
        assert!(answer.body.contains("Incorrect API key provided."), "{answer:?}");
        let body = json!({ "caller": { "api_key": secret }, "resource": "model", "render": true });
        let (_, decision) = node.rest.post("/v1/check", body.to_string()).await;
        assert_eq!(decision["reason"], reason);
        assert_eq!(decision["rendered"]["body"], answer.body);
    }
    let good = Decision { rendered: None, ..consume(&node.grpc, call(api_key(KEY), "model", &[])).await.unwrap() };
    assert_eq!(good.api_key_id, "acme-good");
}

/// A batch renders the calls that request it.
#[tokio::test]
async fn a_batch_renders_the_calls_that_ask() {
    use tollgate_api::v1::{ConsumeBatchRequest, call_result::Result as Of};
    let node = memory_node(&shop_with_a_dialect()).await;
    let one = |render| Call { render, ..call(Caller { by: account("a").by }, "model", &[]) };
    let calls = vec![one(false), one(true)];
    let answer = node.grpc.clone().consume_batch(ConsumeBatchRequest { calls }).await.unwrap().into_inner();
    let rendered: Vec<bool> = answer
        .results
        .iter()
        .map(|result| matches!(&result.result, Some(Of::Decision(decision)) if decision.rendered.is_some()))
        .collect();
    assert_eq!(rendered, [false, true]);
    let calls = json!([
        { "caller": { "account": "b" }, "resource": "model", "render": true },
        { "caller": { "account": "b" }, "resource": "model" },
    ]);
    let (_, answer) = node.rest.post("/v1/consume_batch", json!({ "calls": calls }).to_string()).await;
    assert_eq!(answer["results"][0]["decision"]["rendered"]["status"], 200, "{answer}");
    assert_eq!(answer["results"][1]["decision"].get("rendered"), None, "{answer}");
}

/// A minute's limit, a spent month and a full capacity are refused as the platform names them, and headers about minutes
/// are about minutes whatever refuses.
#[tokio::test]
async fn each_quota_is_refused_in_its_own_words() {
    let quotas = "\
      - { unit: requests, per: minute, limit: 2 }\n      \
      - { unit: requests, per: { calendar: month }, limit: 3, name: budget, scope: [account], refused_as: insufficient_quota }\n      \
      - { unit: requests, per: minute, limit: 5, name: capacity, scope: [resource] }\n";
    let policy = format!(
        "version: 1\ndomain: words\ndialect: openai\nresources:\n  model:\n    quotas:\n      {quotas}\
         tiers: {{ paid: {{ is_charged: true }} }}\ndefault_tier: paid\n"
    );
    let node = memory_node(&policy).await;
    let ask = async |who: &str| rendered(&node, call(account(who), "model", &[])).await;
    let code = |answer: &RenderedResponse| {
        let body: Value = serde_json::from_str(&answer.body).expect("JSON");
        (answer.status, body["error"]["code"].as_str().expect("a code").to_owned())
    };
    let of_minute = |answer: &RenderedResponse| {
        ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"]
            .map(|name| header(answer, name).unwrap().to_owned())
    };
    assert_eq!((ask("a").await.status, ask("a").await.status), (200, 200));
    let minute = ask("a").await;
    assert_eq!((code(&minute), of_minute(&minute)), ((429, "rate_limit_exceeded".into()), ["2".into(), "0".into()]));
    assert_eq!(header(&minute, "x-should-retry"), None);
    node.clock.advance_ms(60_000);
    let last = ask("a").await;
    assert_eq!((last.status, of_minute(&last)), (200, ["2".into(), "1".into()]), "the month has nothing left");
    let spent = ask("a").await;
    assert_eq!((code(&spent), of_minute(&spent)), ((429, "insufficient_quota".into()), ["2".into(), "1".into()]));
    assert_eq!(header(&spent, "x-should-retry"), Some("false"));
    for who in ["b", "b", "c", "c"] {
        assert_eq!(ask(who).await.status, 200);
    }
    let full = ask("d").await;
    assert_eq!((code(&full), of_minute(&full)), ((503, "server_is_overloaded".into()), ["2".into(), "2".into()]));
    assert_eq!((header(&full, "retry-after"), header(&full, "x-should-retry")), (Some("60"), None));
}

/// A part of the body of each dialect.
const UNKNOWN_RESOURCE: [(&str, &str); 7] = [
    ("venice", r#"{"error":"Specified model not found"}"#),
    ("tiered-chat", "There is no resource no-such-model."),
    ("deapi", r#"{"message":"Not Found."}"#),
    ("openai", r#""code":"model_not_found""#),
    ("anthropic", r#""type":"not_found_error","message":"model: no-such-model""#),
    ("ietf", r#""title":"Not Found""#),
    ("none", ""),
];

/// A resource that the policy does not have is a refusal with its own reason, not a text to parse.
#[tokio::test]
async fn an_unknown_resource_is_a_refusal_in_the_dialect() {
    let node = memory_node(&shop(2)).await;
    for (dialect, part) in UNKNOWN_RESOURCE {
        let unknown = Call { dialect: dialect.to_owned(), render: true, ..call(account("a"), "no-such-model", &[]) };
        let decision = consume(&node.grpc, unknown.clone()).await.expect("a decision");
        assert_eq!((decision.reason(), allowed(&decision)), (Reason::UnknownResource, false), "{dialect}");
        assert_eq!(decision.retry_after_ms, None, "{dialect}");
        let answer = decision.rendered.expect("a rendered answer");
        assert_eq!(answer.status, 404, "{dialect}");
        assert!(answer.body.contains(part), "{dialect}: {}", answer.body);
        let reserve = ReserveRequest { call: Some(unknown.clone()), ..ReserveRequest::default() };
        let reserved = node.grpc.clone().reserve(reserve).await.unwrap().into_inner().decision.expect("a decision");
        assert_eq!((reserved.reason(), reserved.reservation), (Reason::UnknownResource, None), "{dialect}");
    }
    let body =
        json!({ "caller": { "account": "a" }, "resource": "no-such-model", "render": true, "dialect": "openai" });
    for route in ["/v1/check", "/v1/consume"] {
        let (status, decision) = node.rest.post(route, body.to_string()).await;
        assert_eq!((status.as_u16(), &decision["reason"]), (200, &json!("unknown_resource")), "{decision}");
        assert_eq!(decision["rendered"]["status"], 404);
    }
    let (_, metrics) = node.rest.text("/metrics").await;
    let counted = metrics.lines().find(|line| line.contains(r#"quota="unknown_resource""#) && !line.ends_with(" 0"));
    assert!(counted.is_some_and(|line| line.ends_with(" 15")), "{counted:?}");
}

/// The store does not answer: the call is UNAVAILABLE, with the answer for the platform's customer.
#[tokio::test]
async fn a_failure_of_the_store_carries_the_rendered_answer() {
    let mut redis = RedisServer::start();
    let node = redis_node(&shop(2), redis.url()).await;
    let one = |render| Call { dialect: "openai".to_owned(), render, ..call(account("a"), "model", &[]) };
    assert!(allowed(&consume(&node.grpc, one(false)).await.unwrap()));
    redis.kill();
    let failed = consume(&node.grpc, one(true)).await.unwrap_err();
    assert_eq!(failed.code(), Code::Unavailable, "{failed:?}");
    let answer = rendered_in(failed.details()).expect("a rendered answer");
    assert_eq!(answer.status, 503);
    let body: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(body["error"]["type"], "service_unavailable_error", "{body}");
    assert_eq!((header(&answer, "x-should-retry"), header(&answer, "content-type")), (None, None));
    let plain = consume(&node.grpc, one(false)).await.unwrap_err();
    assert_eq!((plain.code(), plain.details()), (Code::Unavailable, &[][..]), "only if the call asks");
    let rest = |render: bool| json!({ "caller": { "account": "a" }, "resource": "model", "render": render, "dialect": "openai" });
    let (status, error) = node.rest.post("/v1/consume", rest(true).to_string()).await;
    assert_eq!((status.as_u16(), &error["error"]["code"]), (503, &json!("unavailable")), "{error}");
    assert_eq!(error["error"]["rendered"]["body"], answer.body, "{error}");
    let (_, error) = node.rest.post("/v1/consume", rest(false).to_string()).await;
    assert_eq!(error["error"].get("rendered"), None, "{error}");
    let (_, batch) = node.rest.post("/v1/consume_batch", json!({ "calls": [rest(true)] }).to_string()).await;
    assert_eq!(batch["results"][0]["error"]["rendered"]["status"], 503, "{batch}");
}

/// The waits that a hundred refused calls are told, in milliseconds, by a limit that is full for a minute.
async fn rendered_waits(more: &str) -> Vec<u64> {
    let node = memory_node(&(shop(2) + "dialect: openai\n" + more)).await;
    let ask = |requests| Call { usage: [("requests".to_owned(), requests)].into(), ..call(account("a"), "model", &[]) };
    assert_eq!(rendered(&node, ask(2)).await.status, 200);
    let mut waits = Vec::new();
    for _ in 0..100 {
        let decision = consume(&node.grpc, Call { render: true, ..ask(1) }).await.unwrap();
        assert_eq!(decision.retry_after_ms, Some(60_000), "the decision is exact");
        let answer = decision.rendered.expect("an answer");
        let wait: u64 = header(&answer, "retry-after-ms").unwrap().parse().unwrap();
        let seconds: u64 = header(&answer, "retry-after").unwrap().parse().unwrap();
        assert_eq!(seconds, wait.div_ceil(1_000), "one wait in all of an answer");
        waits.push(wait);
    }
    waits
}

/// With all of a hundred in one tenth of the range by chance once in 10^99 runs.
#[tokio::test]
async fn waits_are_spread_upward_if_the_policy_says_so() {
    assert!(rendered_waits("").await.iter().all(|wait| *wait == 60_000));
    let spread = rendered_waits("retry_jitter: 10%\n").await;
    assert!(spread.iter().all(|wait| (60_000..=66_000).contains(wait)), "never too early: {spread:?}");
    let (least, most) = (spread.iter().min().unwrap(), spread.iter().max().unwrap());
    assert!(most - least > 600, "they do not return together: {spread:?}");
}
