//! How good tracks are: CLEAR MOT (Bernardin and Stiefelhagen, 2008) and identity measures (Ristani et al., 2016).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::assignment::{FORBIDDEN, assign};
use crate::geometry::{Point, distance};

/// Somebody at a place, in truth or as found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placed {
    /// Who.
    pub id: u64,
    /// Where, in metres.
    pub position: Point,
}

/// Truth and finding at one timestep.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Moment {
    /// Who was where.
    pub truth: Vec<Placed>,
    /// What the tracks say.
    pub found: Vec<Placed>,
}

/// Accuracy of tracks against the truth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// 1 - (misses + false positives + switches) / people.
    pub mota: f64,
    /// Mean distance of those matched, in metres.
    pub motp_metres: f64,
    /// Share of right identities: 2 IDTP / (people + found).
    pub idf1: f64,
    /// People in the truth, summed over timesteps.
    pub people: u64,
    /// People found, summed over timesteps.
    pub found: u64,
    /// People who were not found.
    pub misses: u64,
    /// Found where there is nobody.
    pub false_positives: u64,
    /// Times that the track of a person changed.
    pub switches: u64,
}

/// Compares tracks with the truth; farther than `max_distance` metres apart is no match.
pub fn accuracy(moments: &[Moment], max_distance: f64) -> Accuracy {
    let mut last_track: BTreeMap<u64, u64> = BTreeMap::new();
    let mut current: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut people, mut found, mut matches, mut switches, mut total_distance) = (0, 0, 0, 0, 0.0);
    for moment in moments {
        people += moment.truth.len() as u64;
        found += moment.found.len() as u64;
        current = matched(moment, &current, max_distance);
        for (person, track) in &current {
            matches += 1;
            total_distance += between(moment, *person, *track).unwrap_or(0.0);
            if last_track
                .insert(*person, *track)
                .is_some_and(|last| last != *track)
            {
                switches += 1;
            }
        }
    }
    let (misses, false_positives) = (people - matches, found - matches);
    let right = right_identities(moments, max_distance);
    Accuracy {
        mota: 1.0 - (misses + false_positives + switches) as f64 / people.max(1) as f64,
        motp_metres: total_distance / matches.max(1) as f64,
        idf1: 2.0 * right as f64 / (people + found).max(1) as f64,
        people,
        found,
        misses,
        false_positives,
        switches,
    }
}

fn between(moment: &Moment, person: u64, track: u64) -> Option<f64> {
    let person = moment.truth.iter().find(|placed| placed.id == person)?;
    let track = moment.found.iter().find(|placed| placed.id == track)?;
    Some(distance(person.position, track.position))
}

/// Who is matched to which track: pairs of the timestep before stay if they can, the rest is assigned by distance.
fn matched(moment: &Moment, before: &BTreeMap<u64, u64>, max_distance: f64) -> BTreeMap<u64, u64> {
    let stays = |(person, track): &(&u64, &u64)| {
        between(moment, **person, **track).is_some_and(|gap| gap <= max_distance)
    };
    let mut pairs: BTreeMap<u64, u64> = before
        .iter()
        .filter(stays)
        .map(|(person, track)| (*person, *track))
        .collect();
    let taken: BTreeSet<u64> = pairs.values().copied().collect();
    let people: Vec<&Placed> = moment
        .truth
        .iter()
        .filter(|placed| !pairs.contains_key(&placed.id))
        .collect();
    let tracks: Vec<&Placed> = moment
        .found
        .iter()
        .filter(|placed| !taken.contains(&placed.id))
        .collect();
    let gaps = people.iter().flat_map(|person| {
        tracks
            .iter()
            .map(|track| distance(person.position, track.position))
    });
    let costs: Vec<f64> = gaps
        .map(|gap| if gap <= max_distance { gap } else { FORBIDDEN })
        .collect();
    for (person, track) in people
        .iter()
        .zip(assign(people.len(), tracks.len(), &costs))
    {
        if let Some(track) = track {
            pairs.insert(person.id, tracks[track].id);
        }
    }
    pairs
}

/// Timesteps at which people have the track that is theirs, when each gets one track for all time in the best way.
fn right_identities(moments: &[Moment], max_distance: f64) -> u64 {
    let mut together: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    for moment in moments {
        for person in &moment.truth {
            for track in &moment.found {
                if distance(person.position, track.position) <= max_distance {
                    *together.entry((person.id, track.id)).or_default() += 1;
                }
            }
        }
    }
    let people: Vec<u64> = together
        .keys()
        .map(|(person, _)| *person)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let tracks: Vec<u64> = together
        .keys()
        .map(|(_, track)| *track)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let count = |person: usize, track: usize| {
        together
            .get(&(people[person], tracks[track]))
            .copied()
            .unwrap_or(0)
    };
    let pairs =
        (0..people.len()).flat_map(|person| (0..tracks.len()).map(move |track| (person, track)));
    let costs: Vec<f64> = pairs
        .map(|(person, track)| -(count(person, track) as f64))
        .collect();
    let assigned = assign(people.len(), tracks.len(), &costs);
    assigned
        .into_iter()
        .enumerate()
        .filter_map(|(person, track)| track.map(|track| count(person, track)))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(truth: &[(u64, f64)], found: &[(u64, f64)]) -> Moment {
        let placed = |(id, x): &(u64, f64)| Placed {
            id: *id,
            position: [*x, 0.0],
        };
        Moment {
            truth: truth.iter().map(placed).collect(),
            found: found.iter().map(placed).collect(),
        }
    }

    #[test]
    fn perfect_tracks() {
        let moments = vec![moment(&[(1, 0.0), (2, 5.0)], &[(7, 0.0), (9, 5.0)]); 4];
        let accuracy = accuracy(&moments, 0.5);
        assert_eq!(
            (
                accuracy.mota,
                accuracy.idf1,
                accuracy.motp_metres,
                accuracy.people
            ),
            (1.0, 1.0, 0.0, 8)
        );
    }

    #[test]
    fn misses_and_false_positives_count() {
        // Four people-timesteps: one missed, one found two metres away from anybody (a miss and a false positive).
        let moments = [
            moment(&[(1, 0.0)], &[(7, 0.1)]),
            moment(&[(1, 1.0)], &[]),
            moment(&[(1, 2.0)], &[(7, 4.0)]),
            moment(&[(1, 3.0)], &[(7, 3.1)]),
        ];
        let accuracy = accuracy(&moments, 0.5);
        assert_eq!(
            (accuracy.misses, accuracy.false_positives, accuracy.switches),
            (2, 1, 0)
        );
        assert_eq!(accuracy.mota, 1.0 - 3.0 / 4.0);
        // Two right timesteps of track 7; 4 people, 3 found.
        assert_eq!(accuracy.idf1, 2.0 * 2.0 / 7.0);
        assert!((accuracy.motp_metres - 0.1).abs() < 1e-12);
    }

    #[test]
    fn a_new_track_for_the_same_person_is_a_switch_and_costs_identity() {
        let moments: Vec<Moment> = (0..10)
            .map(|t| {
                moment(
                    &[(1, f64::from(t))],
                    &[(if t < 6 { 7 } else { 8 }, f64::from(t))],
                )
            })
            .collect();
        let accuracy = accuracy(&moments, 0.5);
        assert_eq!(accuracy.switches, 1);
        assert_eq!(accuracy.mota, 0.9);
        assert_eq!(accuracy.idf1, 0.6);
    }

    #[test]
    fn two_who_swap_tracks_are_two_switches_and_half_the_identity() {
        let moments = [
            moment(&[(1, 0.0), (2, 5.0)], &[(7, 0.0), (8, 5.0)]),
            moment(&[(1, 0.0), (2, 5.0)], &[(8, 0.0), (7, 5.0)]),
        ];
        let accuracy = accuracy(&moments, 0.5);
        assert_eq!((accuracy.switches, accuracy.misses), (2, 0));
        assert_eq!((accuracy.mota, accuracy.idf1), (0.5, 0.5));
    }

    #[test]
    fn a_pair_stays_together_although_another_is_nearer() {
        let moments = [
            moment(&[(1, 0.0)], &[(7, 0.0)]),
            moment(&[(1, 0.0)], &[(7, 0.4), (8, 0.1)]),
        ];
        let accuracy = accuracy(&moments, 0.5);
        assert_eq!((accuracy.switches, accuracy.false_positives), (0, 1));
    }

    #[test]
    fn nobody_at_all() {
        let accuracy = accuracy(&[], 0.5);
        assert_eq!((accuracy.mota, accuracy.idf1), (1.0, 0.0));
    }
}
