//! Whose turn it is: of two processes of one box, one writes to an API server.

use std::sync::Arc;

use tokio::sync::watch;

/// Where this process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The process before this one may still be at it.
    Waits,
    Ours,
    /// The next process has it.
    Over,
}

/// Opens when this process serves, and closes when another one has taken over. Cheap to copy.
#[derive(Clone)]
pub(crate) struct Gate(Arc<watch::Sender<Turn>>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(watch::channel(Turn::Waits).0))
    }
}

impl Gate {
    pub(crate) fn open(&self) {
        self.0.send_replace(Turn::Ours);
    }

    pub(crate) fn close(&self) {
        self.0.send_replace(Turn::Over);
    }

    /// Does something from when the gate opens until it closes.
    pub(crate) async fn within(self, work: impl Future<Output = ()>) {
        let mut turn = self.0.subscribe();
        // The sender is ours, too.
        let _ = turn.wait_for(|turn| *turn != Turn::Waits).await;
        self.until_closed(work).await;
    }

    /// Does something until the gate closes.
    pub(crate) async fn until_closed(self, work: impl Future<Output = ()>) {
        let mut turn = self.0.subscribe();
        tokio::select! {
            biased;
            _ = turn.wait_for(|turn| *turn == Turn::Over) => {}
            () = work => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn work_is_done_within() {
        let gate = Gate::default();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (ours, begun) = (Arc::clone(&log), Arc::new(tokio::sync::Notify::new()));
        let notify = Arc::clone(&begun);
        let (_never, forever) = oneshot::channel::<()>();
        let work = tokio::spawn(gate.clone().within(async move {
            ours.lock().unwrap().push("begun");
            notify.notify_one();
            let _ = forever.await;
            ours.lock().unwrap().push("not cut off");
        }));
        tokio::task::yield_now().await;
        assert!(log.lock().unwrap().is_empty());
        gate.open();
        begun.notified().await;
        gate.close();
        work.await.unwrap();
        assert_eq!(*log.lock().unwrap(), ["begun"]);
        gate.within(async { unreachable!("it is closed") }).await;
    }
}
