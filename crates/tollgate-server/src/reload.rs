//! Hot reload: when a policy file changes, and on SIGHUP.

use std::{sync::Arc, time::Duration};

use notify::{RecursiveMode, Watcher};
use tokio::{signal::unix::Signal, sync::mpsc};

use crate::policies::{Policies, one_text};

/// Editors and volume mounts change a file in several steps; the last one counts.
const SETTLE: Duration = Duration::from_millis(200);

/// Reloads the policies for as long as the node lives, on changes and on each of `hangups`.
///
/// The folders are watched rather than the files, as a mounted configuration is replaced by renaming a
/// link in its folder.
pub(crate) async fn keep_fresh(policies: Arc<Policies>, mut hangups: Signal) {
    // One waiting notice is enough: it says that something changed, not what.
    let (notice, mut changes) = mpsc::channel(1);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = notice.try_send(());
        }
    });
    let mut watcher = match watcher {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(%error, "policy files cannot be watched; SIGHUP still reloads them");
            None
        }
    };
    for folder in policies.folders() {
        if let Some(watcher) = &mut watcher
            && let Err(error) = watcher.watch(&folder, RecursiveMode::NonRecursive)
        {
            tracing::warn!(%error, folder = %folder.display(), "folder cannot be watched; SIGHUP still reloads its policies");
        }
    }
    loop {
        tokio::select! {
            Some(()) = changes.recv() => tokio::time::sleep(SETTLE).await,
            Some(()) = hangups.recv() => {}
            else => return,
        }
        while changes.try_recv().is_ok() {}
        let reloading = Arc::clone(&policies);
        match tokio::task::spawn_blocking(move || reloading.reload()).await {
            Ok(Ok(())) => tracing::info!(domains = ?policies.current().names(), "policies reloaded"),
            Ok(Err(errors)) => tracing::error!(errors = %one_text(&errors), "policies not reloaded; the old ones stay"),
            Err(error) => tracing::error!(%error, "policies not reloaded; the old ones stay"),
        }
    }
}
