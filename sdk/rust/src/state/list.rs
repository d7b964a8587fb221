//! A sequence, each element stored under a key of its own.

use std::marker::PhantomData;

use crate::Error;
use crate::state::stored::Stored;
use crate::state::{cache, name};

/// A list of the session: an element is stored under `name/<20 digits>`, and where the list begins
/// and ends under `name/range`, as `0..5`. Appending writes these two keys, however long the list is;
/// what is not asked for is not loaded.
///
/// ```
/// static SEEN: fulmar::List<String> = fulmar::List::new("seen");
/// # fn main() -> Result<(), fulmar::Error> {
/// SEEN.push("a cat".into())?;
/// SEEN.push("a dog".into())?;
/// assert_eq!(SEEN.get(1)?.as_deref(), Some("a dog"));
/// SEEN.keep_last(1)?;
/// for animal in SEEN.iter() {
///     assert_eq!(animal?, "a dog");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct List<T> {
    name: &'static str,
    _type: PhantomData<fn() -> T>,
}

/// Positions of the first element and of the one after the last. `start <= end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Range {
    start: u64,
    end: u64,
}

impl Range {
    fn len(self) -> u64 {
        self.end - self.start
    }

    /// The position of an index, if there is an element.
    fn position(self, index: u64) -> Option<u64> {
        (index < self.len()).then(|| self.start + index)
    }
}

impl Stored for Range {
    fn to_stored(&self) -> Result<Vec<u8>, Error> {
        Ok(format!("{}..{}", self.start, self.end).into_bytes())
    }

    fn from_stored(bytes: &[u8]) -> Result<Self, Error> {
        let (start, end) = std::str::from_utf8(bytes)?
            .trim()
            .split_once("..")
            .ok_or_else(|| Error::failed("expected START..END"))?;
        let (start, end) = (start.parse()?, end.parse()?);
        if start > end {
            return Err(Error::failed(format!(
                "{start}..{end} ends before it starts"
            )));
        }
        Ok(Self { start, end })
    }
}

impl<T: Stored> List<T> {
    /// The list of this name: 1 to 200 bytes without `:`, `/` and control characters.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name: name::checked(name),
            _type: PhantomData,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> Result<u64, Error> {
        Ok(self.range()?.len())
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len()? == 0)
    }

    /// Appends an element; returns the new length.
    pub fn push(&self, element: T) -> Result<u64, Error> {
        let mut range = self.range()?;
        cache::put(&self.path(range.end), Some(element));
        range.end += 1;
        cache::put(&self.range_path(), Some(range));
        Ok(range.len())
    }

    /// Appends elements; returns the new length.
    pub fn extend(&self, elements: impl IntoIterator<Item = T>) -> Result<u64, Error> {
        for element in elements {
            self.push(element)?;
        }
        self.len()
    }

    /// A copy of the element at an index.
    pub fn get(&self, index: u64) -> Result<Option<T>, Error>
    where
        T: Clone,
    {
        self.with(index, |element| element.cloned())
    }

    /// A copy of the last element.
    pub fn last(&self) -> Result<Option<T>, Error>
    where
        T: Clone,
    {
        match self.len()? {
            0 => Ok(None),
            len => self.get(len - 1),
        }
    }

    /// Looks at the element at an index in place.
    pub fn with<R>(&self, index: u64, look: impl FnOnce(Option<&T>) -> R) -> Result<R, Error> {
        match self.range()?.position(index) {
            Some(position) => {
                let path = self.path(position);
                cache::read(&path, |element| match element {
                    Some(element) => Ok(look(Some(element))),
                    None => Err(missing(&path)),
                })?
            }
            None => Ok(look(None)),
        }
    }

    /// Replaces the element at an index; false if there is none.
    pub fn set(&self, index: u64, element: T) -> Result<bool, Error> {
        let position = self.range()?.position(index);
        if let Some(position) = position {
            cache::put(&self.path(position), Some(element));
        }
        Ok(position.is_some())
    }

    /// Changes the element at an index in place; none if there is none.
    pub fn update<R>(
        &self,
        index: u64,
        change: impl FnOnce(&mut T) -> R,
    ) -> Result<Option<R>, Error> {
        let Some(position) = self.range()?.position(index) else {
            return Ok(None);
        };
        let path = self.path(position);
        cache::update(&path, |element| element.as_mut().map(change))?
            .map_or_else(|| Err(missing(&path)), |result| Ok(Some(result)))
    }

    /// Removes and returns the first element.
    pub fn pop_front(&self) -> Result<Option<T>, Error> {
        let mut range = self.range()?;
        let Some(position) = range.position(0) else {
            return Ok(None);
        };
        range.start += 1;
        self.remove(position, range).map(Some)
    }

    /// Removes and returns the last element.
    pub fn pop_back(&self) -> Result<Option<T>, Error> {
        let mut range = self.range()?;
        if range.len() == 0 {
            return Ok(None);
        }
        range.end -= 1;
        self.remove(range.end, range).map(Some)
    }

    /// Removes what is after the first `len` elements, without loading it.
    pub fn truncate(&self, len: u64) -> Result<(), Error> {
        let range = self.range()?;
        self.shrink(Range {
            end: range.end.min(range.start.saturating_add(len)),
            ..range
        })
    }

    /// Removes what is before the last `len` elements, without loading it.
    pub fn keep_last(&self, len: u64) -> Result<(), Error> {
        let range = self.range()?;
        self.shrink(Range {
            start: range.start.max(range.end.saturating_sub(len)),
            ..range
        })
    }

    /// Removes all elements, without loading them.
    pub fn clear(&self) -> Result<(), Error> {
        self.truncate(0)
    }

    /// Copies of all elements, one loaded after the other. Elements that are removed or added
    /// meanwhile are seen as gone or there.
    pub fn iter(&self) -> Iter<'_, T>
    where
        T: Clone,
    {
        self.iter_from(0)
    }

    /// Copies of the elements from an index on.
    pub fn iter_from(&self, index: u64) -> Iter<'_, T>
    where
        T: Clone,
    {
        Iter {
            list: self,
            next: Next::Index(index),
        }
    }

    fn path(&self, position: u64) -> String {
        format!("{}/{position:020}", self.name)
    }

    fn range_path(&self) -> String {
        format!("{}/range", self.name)
    }

    fn range(&self) -> Result<Range, Error> {
        cache::read(&self.range_path(), |range: Option<&Range>| {
            range.copied().unwrap_or_default()
        })
    }

    /// Takes the element at a position out, which leaves `range`.
    fn remove(&self, position: u64, range: Range) -> Result<T, Error> {
        let path = self.path(position);
        let element = cache::update(&path, Option::take)?.ok_or_else(|| missing(&path))?;
        cache::put(&self.range_path(), Some(range));
        Ok(element)
    }

    /// Removes what is outside of `kept`.
    fn shrink(&self, kept: Range) -> Result<(), Error> {
        let range = self.range()?;
        if kept == range {
            return Ok(());
        }
        for position in (range.start..kept.start).chain(kept.end..range.end) {
            cache::put::<T>(&self.path(position), None);
        }
        cache::put(&self.range_path(), Some(kept));
        Ok(())
    }
}

/// Somebody deleted an element's key.
#[cold]
fn missing(path: &str) -> Error {
    Error::failed(format!("the list's element {path:?} is gone"))
}

/// Copies of a list's elements.
#[derive(Debug)]
pub struct Iter<'a, T> {
    list: &'a List<T>,
    next: Next,
}

#[derive(Debug)]
enum Next {
    /// Nothing was asked of the node yet.
    Index(u64),
    Position(u64),
    /// There was an error, and it was told.
    Nothing,
}

impl<T: Stored + Clone> Iter<'_, T> {
    fn step(&mut self) -> Result<Option<T>, Error> {
        let range = self.list.range()?;
        let position = match self.next {
            Next::Index(index) => range.start.saturating_add(index),
            Next::Position(position) => position.max(range.start),
            Next::Nothing => return Ok(None),
        };
        self.next = Next::Position(position.saturating_add(1));
        self.list.get(position - range.start)
    }
}

impl<T: Stored + Clone> Iterator for Iter<'_, T> {
    type Item = Result<T, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let element = self.step();
        if element.is_err() {
            self.next = Next::Nothing;
        }
        element.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{calls, drop_worker, invoke, reset, stored_in_session};
    use crate::{Counter, Raw};
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[derive(Debug, Clone)]
    enum Step {
        Push(u16),
        PopFront,
        PopBack,
        Set(u64, u16),
        Update(u64),
        Truncate(u64),
        KeepLast(u64),
        Commit,
        Fail,
        DropWorker,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => any::<u16>().prop_map(Step::Push),
            2 => Just(Step::PopFront),
            1 => Just(Step::PopBack),
            1 => (0..12_u64, any::<u16>()).prop_map(|(index, value)| Step::Set(index, value)),
            1 => (0..12_u64).prop_map(Step::Update),
            1 => (0..12_u64).prop_map(Step::Truncate),
            1 => (0..12_u64).prop_map(Step::KeepLast),
            2 => Just(Step::Commit),
            1 => Just(Step::Fail),
            1 => Just(Step::DropWorker),
        ]
    }

    static LIST: List<u16> = List::new("l");

    fn apply(step: &Step, plain: &mut VecDeque<u16>) -> Result<(), Error> {
        match *step {
            Step::Push(value) => {
                plain.push_back(value);
                assert_eq!(LIST.push(value)?, plain.len() as u64);
            }
            Step::PopFront => assert_eq!(LIST.pop_front()?, plain.pop_front()),
            Step::PopBack => assert_eq!(LIST.pop_back()?, plain.pop_back()),
            Step::Set(index, value) => {
                let place = plain.get_mut(index as usize);
                assert_eq!(LIST.set(index, value)?, place.is_some());
                if let Some(place) = place {
                    *place = value;
                }
            }
            Step::Update(index) => {
                let place = plain.get_mut(index as usize);
                let twice = |value: &mut u16| *value = value.wrapping_mul(2);
                assert_eq!(LIST.update(index, twice)?, place.map(twice));
            }
            Step::Truncate(len) => {
                plain.truncate(len as usize);
                LIST.truncate(len)?;
            }
            Step::KeepLast(len) => {
                plain.drain(..plain.len().saturating_sub(len as usize));
                LIST.keep_last(len)?;
            }
            Step::Commit | Step::Fail | Step::DropWorker => {
                unreachable!("not inside an invocation")
            }
        }
        Ok(())
    }

    fn agrees(plain: &VecDeque<u16>) -> Result<(), Error> {
        assert_eq!(LIST.len()?, plain.len() as u64);
        assert_eq!(LIST.last()?, plain.back().copied());
        let all: Result<VecDeque<u16>, Error> = LIST.iter().collect();
        assert_eq!(&all?, plain);
        Ok(())
    }

    /// Runs the steps in invocations that end where the steps say so.
    fn run(steps: &[Step]) {
        reset();
        let (mut plain, mut steps) = (VecDeque::new(), steps.iter().peekable());
        while steps.peek().is_some() {
            let mut inside = plain.clone();
            let mut end = &Step::Commit;
            let result = invoke("s", || {
                for step in steps.by_ref() {
                    if matches!(step, Step::Commit | Step::Fail | Step::DropWorker) {
                        end = step;
                        break;
                    }
                    apply(step, &mut inside)?;
                    agrees(&inside)?;
                }
                match end {
                    Step::Fail => Err(Error::failed("on purpose")),
                    _ => Ok(()),
                }
            });
            match end {
                Step::Fail => assert_eq!(result, Err(Error::failed("on purpose"))),
                _ => {
                    result.unwrap();
                    plain = inside;
                }
            }
            if matches!(end, Step::DropWorker) {
                drop_worker();
            }
            invoke("s", || agrees(&plain)).unwrap();
        }
    }

    proptest! {
        #[test]
        fn a_list_is_a_queue(steps in proptest::collection::vec(step(), 0..60)) {
            run(&steps);
        }

        #[test]
        fn a_list_is_a_queue_when_little_is_held(steps in proptest::collection::vec(step(), 0..60)) {
            cache::with_limits((3, 200, 4), || run(&steps));
        }
    }

    #[test]
    fn appending_costs_the_same_however_long_the_list_is() {
        reset();
        for round in 0..5000 {
            let before = calls();
            invoke("s", || LIST.push(round)).unwrap();
            let (reads, writes) = (calls().reads - before.reads, calls().writes - before.writes);
            assert!(
                writes == 2 && reads == u64::from(round == 0),
                "{round}: {reads}, {writes}"
            );
        }
    }

    #[test]
    fn what_is_held_is_bounded_and_the_hot_stays() {
        reset();
        static PADDED: List<Raw> = List::new("padded");
        static HOT: Counter = Counter::new("hot");
        cache::with_limits((1000, 100_000, 256), || {
            for _ in 0..2000 {
                invoke("s", || {
                    PADDED.push(Raw(vec![0; 1000]))?;
                    HOT.add(1)
                })
                .unwrap();
                assert!(cache::held() <= 250, "{}", cache::held());
            }
            // The range and the counter, once.
            assert_eq!(calls().reads, 2);
            let sum = invoke("s", || {
                PADDED.iter().try_fold(0, |sum, raw| Ok(sum + raw?.0.len()))
            });
            assert_eq!(sum, Ok(2_000_000));
            assert!(cache::held() <= 250, "{}", cache::held());
        });
    }

    #[test]
    fn the_keys_are_readable() {
        reset();
        invoke("s", || LIST.extend([7, 8, 9])).unwrap();
        invoke("s", || LIST.pop_front()).unwrap();
        assert_eq!(stored_in_session("s", "l/range").unwrap(), b"1..3");
        assert_eq!(
            stored_in_session("s", "l/00000000000000000001").unwrap(),
            b"8"
        );
        assert_eq!(stored_in_session("s", "l/00000000000000000000"), None);
    }

    #[test]
    fn a_broken_range_or_a_missing_element_is_an_error() {
        for range in ["3", "5..1", "a..b"] {
            reset();
            let broken = invoke("s", || {
                crate::session().set("l/range", range.as_bytes())?;
                LIST.push(1)
            });
            assert!(broken.is_err(), "{range}");
        }
        reset();
        invoke("s", || LIST.push(1)).unwrap();
        let gone = invoke("s", || {
            crate::session().delete("l/00000000000000000000")?;
            assert_eq!(LIST.iter().count(), 1, "the error, and no more");
            LIST.get(0)
        });
        assert!(gone.unwrap_err().to_string().contains("is gone"));
    }
}
