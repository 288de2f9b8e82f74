//! What waits for the device: interactive work before the rest, and clients in turn within each.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether somebody waits for it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Begins before all of `batch`, whose work pauses for it.
    #[default]
    Interactive,
    /// Done when there is nothing else to do.
    Batch,
}

/// Who asks: clients take turns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client(pub String);

/// A queue of bounded length.
pub struct Queue<T> {
    /// By priority, of each the clients in the order of their turns.
    classes: [VecDeque<(Client, VecDeque<T>)>; 2],
    len: usize,
    limit: usize,
}

impl<T> Queue<T> {
    pub fn new(limit: usize) -> Self {
        Self { classes: [VecDeque::new(), VecDeque::new()], len: 0, limit }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Places that are left.
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.len)
    }

    /// Adds an item behind the others of its client, whether there is [room](Self::room) or not.
    pub fn push(&mut self, client: &Client, priority: Priority, item: T) {
        let class = &mut self.classes[priority as usize];
        match class.iter_mut().find(|(known, _)| known == client) {
            Some((_, items)) => items.push_back(item),
            None => class.push_back((client.clone(), VecDeque::from([item]))),
        }
        self.len += 1;
    }

    /// Takes the next item in turn, of those that are first of their client, for which `may` holds.
    pub fn pop_if(&mut self, mut may: impl FnMut(Priority, &T) -> bool) -> Option<T> {
        for priority in [Priority::Interactive, Priority::Batch] {
            let class = &mut self.classes[priority as usize];
            let fits = |(_, items): &(Client, VecDeque<T>)| {
                items.front().is_some_and(|item| may(priority, item))
            };
            let Some(turn) = class.iter().position(fits) else { continue };
            let Some((client, mut items)) = class.remove(turn) else { continue };
            let item = items.pop_front();
            if !items.is_empty() {
                class.push_back((client, items));
            }
            self.len -= usize::from(item.is_some());
            return item;
        }
        None
    }

    /// Takes out all items that `wanted` holds for, in no particular order.
    pub fn remove(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        for class in &mut self.classes {
            for (_, items) in class.iter_mut() {
                let (out, stay): (Vec<T>, Vec<T>) = items.drain(..).partition(&mut wanted);
                removed.extend(out);
                items.extend(stay);
            }
            class.retain(|(_, items)| !items.is_empty());
        }
        self.len -= removed.len();
        removed
    }

    /// All items in the order in which they would be taken if all fitted.
    pub fn in_turn(&self) -> impl Iterator<Item = (Priority, &T)> {
        [Priority::Interactive, Priority::Batch].into_iter().flat_map(move |priority| {
            let class = &self.classes[priority as usize];
            let rounds = class.iter().map(|(_, items)| items.len()).max().unwrap_or(0);
            (0..rounds).flat_map(move |round| {
                class.iter().filter_map(move |(_, items)| Some((priority, items.get(round)?)))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str) -> Client {
        Client(name.to_owned())
    }

    fn filled() -> Queue<u32> {
        let mut queue = Queue::new(8);
        for item in [1, 2, 3] {
            queue.push(&client("a"), Priority::Interactive, item);
        }
        queue.push(&client("b"), Priority::Interactive, 10);
        queue.push(&client("b"), Priority::Batch, 20);
        queue.push(&client("b"), Priority::Interactive, 11);
        queue
    }

    #[test]
    fn clients_take_turns_and_who_waits_comes_first() {
        let mut queue = filled();
        let told: Vec<u32> = queue.in_turn().map(|(_, item)| *item).collect();
        let taken: Vec<u32> = std::iter::from_fn(|| queue.pop_if(|_, _| true)).collect();
        assert_eq!(taken, [1, 10, 2, 11, 3, 20]);
        assert_eq!(told, taken);
        assert_eq!((queue.len(), queue.room()), (0, 8));
    }

    #[test]
    fn what_does_not_fit_lets_others_by_but_not_its_own_clients() {
        let mut queue = filled();
        assert_eq!(queue.pop_if(|_, item| *item != 1), Some(10));
        // 2 stands behind 1, of the same client.
        assert_eq!(queue.pop_if(|_, item| *item != 1), Some(11));
        assert_eq!(queue.pop_if(|_, item| *item != 1), Some(20));
        assert_eq!(queue.pop_if(|_, item| *item != 1), None);
        assert_eq!(queue.len(), 3);
    }

    #[test]
    fn what_is_taken_out_leaves_the_order_of_the_rest() {
        let mut queue = filled();
        let mut removed = queue.remove(|item| item % 2 == 0);
        removed.sort_unstable();
        assert_eq!(removed, [2, 10, 20]);
        let rest: Vec<u32> = std::iter::from_fn(|| queue.pop_if(|_, _| true)).collect();
        assert_eq!(rest, [1, 11, 3]);
        assert_eq!(queue.len(), 0);
    }
}
