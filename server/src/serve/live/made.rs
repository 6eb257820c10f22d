//! What is made once for all who want it at about the same time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OnceCell;

/// Things that are remembered.
pub(super) const KEPT_MAX: usize = 1_024;

/// Remembers what was made at the latest head. What `is_kept` is kept; another thing
/// goes with the last who holds it.
#[derive(Debug)]
pub(super) struct Made<K, T>(Mutex<Kept<K, T>>);

#[derive(Debug)]
struct Kept<K, T> {
    /// Number of the last change at which things were asked for.
    head: u64,
    cells: HashMap<K, Cell<T>>,
}

type Cell<T> = Arc<OnceCell<(Weak<T>, Option<Arc<T>>)>>;

impl<K, T> Default for Made<K, T> {
    fn default() -> Self {
        Self(Mutex::new(Kept { head: 0, cells: HashMap::new() }))
    }
}

impl<K: Eq + Hash, T> Made<K, T> {
    /// What `key` is, made by `make` unless somebody has made it. `head` is the log's then: what was
    /// made at earlier ones is forgotten.
    pub(super) async fn get<E, F: Future<Output = Result<Arc<T>, E>>>(
        &self,
        head: u64,
        key: K,
        is_kept: impl Fn(&T) -> bool,
        make: impl Fn() -> F,
    ) -> Result<Arc<T>, E> {
        let mut made = None;
        let cell = self.cell(head, key);
        let kept = cell
            .get_or_try_init(|| async {
                let thing = make().await?;
                made = Some(Arc::clone(&thing));
                let kept = is_kept(&thing).then(|| Arc::clone(&thing));
                Ok((Arc::downgrade(&thing), kept))
            })
            .await?;
        match made.or_else(|| kept.0.upgrade()) {
            Some(thing) => Ok(thing),
            // Gone just now.
            None => make().await,
        }
    }

    fn cell(&self, head: u64, key: K) -> Cell<T> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if head > kept.head || kept.cells.len() >= KEPT_MAX {
            kept.head = kept.head.max(head);
            kept.cells.clear();
        }
        let cell = kept.cells.entry(key).or_default();
        if cell.get().is_some_and(|(weak, _)| weak.strong_count() == 0) {
            *cell = Cell::default();
        }
        Arc::clone(cell)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell as Counter;

    use super::*;

    #[tokio::test]
    async fn what_is_kept_is_made_once_and_what_is_large_while_somebody_holds_it() {
        let made = Made::<&str, usize>::default();
        let count = Counter::new(0);
        let get = async |head, key, size| {
            let make = || {
                count.set(count.get() + 1);
                std::future::ready(Ok::<_, ()>(Arc::new(size)))
            };
            made.get(head, key, |size| *size < 10, make).await.unwrap()
        };
        for _ in 0..3 {
            get(1, "small", 1).await;
        }
        assert_eq!(count.get(), 1);
        let held = get(1, "large", 100).await;
        get(1, "large", 100).await;
        assert_eq!(count.get(), 2);
        drop(held);
        get(1, "large", 100).await;
        get(2, "small", 1).await;
        assert_eq!(count.get(), 4);
    }
}
