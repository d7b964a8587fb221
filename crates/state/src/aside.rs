//! Work that takes long, on threads of its own, so that it holds up no tasks. On a runtime with a single thread, where nobody
//! serves others (tests, simulations), it is done at once, and each time in the same order.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::mpsc;
use tokio::task::JoinError;

fn has_one_thread() -> bool {
    Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread
}

/// Does some work.
///
/// # Errors
/// When it panics, or the runtime ends.
pub async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    match has_one_thread() {
        true => Ok(work()),
        false => tokio::task::spawn_blocking(work).await,
    }
}

/// What some work gives, at most so many ahead of whoever takes them. What it gives it to says whether anybody still takes
/// any.
pub fn items<T: Send + 'static>(
    ahead: usize,
    work: impl FnOnce(&mut dyn FnMut(T) -> bool) + Send + 'static,
) -> mpsc::Receiver<T> {
    if !has_one_thread() {
        let (send, receive) = mpsc::channel(ahead);
        tokio::task::spawn_blocking(move || work(&mut |item| send.blocking_send(item).is_ok()));
        return receive;
    }
    let mut all = Vec::new();
    work(&mut |item| {
        all.push(item);
        true
    });
    let (send, receive) = mpsc::channel(all.len().max(1));
    for item in all {
        // There is room for all of them.
        let _ = send.try_send(item);
    }
    receive
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn both() {
        assert_eq!(run(|| 1).await.unwrap(), 1);
        let mut items = items(1, |give| {
            for item in 0..100 {
                assert!(give(item));
            }
        });
        let mut taken = Vec::new();
        while let Some(item) = items.recv().await {
            taken.push(item);
        }
        assert_eq!(taken, (0..100).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn with_one_thread() {
        both().await;
    }

    #[test]
    fn with_several_threads() {
        let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
        runtime.block_on(both());
    }
}
