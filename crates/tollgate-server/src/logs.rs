//! Logs, and the caller's trace in them.

use tracing::Instrument;

use crate::escape;

/// Runs `work` under the caller's W3C trace, so that its log lines belong to that trace. Without a valid `traceparent`
/// (<https://www.w3.org/TR/trace-context/#traceparent-header>) it runs without one.
pub(crate) async fn traced<T>(traceparent: Option<&str>, work: impl Future<Output = T>) -> T {
    match traceparent.and_then(parse_traceparent) {
        Some((trace_id, parent_id)) => work.instrument(tracing::info_span!("call", trace_id, parent_id)).await,
        None => work.await,
    }
}

fn parse_traceparent(header: &str) -> Option<(&str, &str)> {
    let mut fields = header.split('-');
    let (version, trace_id, parent_id, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let hex =
        |text: &str, length| text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_not_zero = |text: &str| text.bytes().any(|byte| byte != b'0');
    let has_no_more_fields = version != "00" || fields.next().is_none();
    let valid = hex(version, 2) && version != "ff" && hex(trace_id, 32) && hex(parent_id, 16) && hex(flags, 2);
    (valid && has_no_more_fields && is_not_zero(trace_id) && is_not_zero(parent_id)).then_some((trace_id, parent_id))
}

/// The format of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A JSON object per line.
    Json,
    /// For people.
    Pretty,
}

/// Starts logging to standard error, once for the process.
pub(crate) fn start_logging(format: LogFormat, filter: &str) -> Result<(), String> {
    use tracing_subscriber::{EnvFilter, fmt};
    // Warnings of the HTTP/2 library are caused by clients, so they are off by default; a filter can enable them.
    let filter = EnvFilter::try_new(format!("h2=error,{filter}")).map_err(|error| format!("log-filter: {error}"))?;
    let builder = fmt().with_env_filter(filter).with_writer(|| escape::Escaping(std::io::stderr()));
    let started = match format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Pretty => builder.try_init(),
    };
    started.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparents() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(parse_traceparent(good), Some(("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")));
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(parse_traceparent(bad), None, "{bad}");
        }
    }
}
