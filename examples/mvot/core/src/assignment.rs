//! The cheapest assignment of rows to columns (Hungarian algorithm with potentials, O(n^2 m)).

/// A cost that is never taken.
pub const FORBIDDEN: f64 = f64::INFINITY;

/// For each row the column it is assigned to. As many pairs as possible are made of those that are not
/// [`FORBIDDEN`], and among these ways the sum of costs is the least.
///
/// `costs` holds one row after the other, each of `columns` finite or forbidden values.
pub fn assign(rows: usize, columns: usize, costs: &[f64]) -> Vec<Option<usize>> {
    assert_eq!(costs.len(), rows * columns, "one cost for each pair");
    if rows == 0 || columns == 0 {
        return vec![None; rows];
    }
    // A forbidden pair costs more than any way without one.
    let finite = costs.iter().filter(|cost| cost.is_finite());
    let (least, most) = finite.fold((0.0f64, 0.0f64), |(least, most), cost| {
        (least.min(*cost), most.max(*cost))
    });
    let dear = (most - least + 1.0) * (rows.min(columns) + 1) as f64 + most;
    let cost = |row: usize, column: usize| {
        let cost = costs[row * columns + column];
        if cost.is_finite() { cost } else { dear }
    };
    let pairs = if rows <= columns {
        rows_to_columns(rows, columns, cost)
    } else {
        let mut pairs = vec![None; rows];
        let by_column = rows_to_columns(columns, rows, |column, row| cost(row, column));
        for (column, row) in by_column.into_iter().enumerate() {
            if let Some(row) = row {
                pairs[row] = Some(column);
            }
        }
        pairs
    };
    let allowed = |(row, column): (usize, Option<usize>)| {
        column.filter(|column| costs[row * columns + column].is_finite())
    };
    pairs.into_iter().enumerate().map(allowed).collect()
}

/// Every row gets a column; `rows <= columns`. Rows and columns are numbered from 1 inside, 0 is "none".
fn rows_to_columns(
    rows: usize,
    columns: usize,
    cost: impl Fn(usize, usize) -> f64,
) -> Vec<Option<usize>> {
    let mut row_potential = vec![0.0; rows + 1];
    let mut column_potential = vec![0.0; columns + 1];
    let mut row_of = vec![0; columns + 1];
    let mut previous = vec![0; columns + 1];
    for row in 1..=rows {
        // A shortest augmenting path from the new row to a free column.
        row_of[0] = row;
        let mut least = vec![f64::INFINITY; columns + 1];
        let mut used = vec![false; columns + 1];
        let mut at = 0;
        while row_of[at] != 0 {
            used[at] = true;
            let from = row_of[at];
            let (mut delta, mut next) = (f64::INFINITY, 0);
            for column in 1..=columns {
                if used[column] {
                    continue;
                }
                let reduced =
                    cost(from - 1, column - 1) - row_potential[from] - column_potential[column];
                if reduced < least[column] {
                    least[column] = reduced;
                    previous[column] = at;
                }
                if least[column] < delta {
                    delta = least[column];
                    next = column;
                }
            }
            for column in 0..=columns {
                if used[column] {
                    row_potential[row_of[column]] += delta;
                    column_potential[column] -= delta;
                } else {
                    least[column] -= delta;
                }
            }
            at = next;
        }
        while at != 0 {
            row_of[at] = row_of[previous[at]];
            at = previous[at];
        }
    }
    let mut columns_of = vec![None; rows];
    for (column, row) in row_of.iter().enumerate().skip(1) {
        if *row != 0 {
            columns_of[row - 1] = Some(column - 1);
        }
    }
    columns_of
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs and sum of the best way, by trying all.
    fn brute_force(rows: usize, columns: usize, costs: &[f64]) -> (usize, f64) {
        fn go(
            row: usize,
            rows: usize,
            columns: usize,
            costs: &[f64],
            used: &mut Vec<bool>,
        ) -> (usize, f64) {
            if row == rows {
                return (0, 0.0);
            }
            let mut best = go(row + 1, rows, columns, costs, used);
            for column in 0..columns {
                let cost = costs[row * columns + column];
                if used[column] || !cost.is_finite() {
                    continue;
                }
                used[column] = true;
                let (pairs, sum) = go(row + 1, rows, columns, costs, used);
                used[column] = false;
                if pairs + 1 > best.0 || (pairs + 1 == best.0 && sum + cost < best.1) {
                    best = (pairs + 1, sum + cost);
                }
            }
            best
        }
        go(0, rows, columns, costs, &mut vec![false; columns])
    }

    fn value(pairs: &[Option<usize>], columns: usize, costs: &[f64]) -> (usize, f64) {
        let mut taken: Vec<usize> = pairs.iter().flatten().copied().collect();
        taken.sort_unstable();
        assert!(
            taken.windows(2).all(|pair| pair[0] != pair[1]),
            "a column is taken twice: {pairs:?}"
        );
        let pairs = pairs
            .iter()
            .enumerate()
            .filter_map(|(row, column)| column.map(|column| costs[row * columns + column]));
        pairs.fold((0, 0.0), |(count, sum), cost| (count + 1, sum + cost))
    }

    #[test]
    fn a_known_square() {
        let costs = [4.0, 1.0, 3.0, 2.0, 0.0, 5.0, 3.0, 2.0, 2.0];
        assert_eq!(assign(3, 3, &costs), [Some(1), Some(0), Some(2)]);
    }

    #[test]
    fn nothing_to_assign() {
        assert!(assign(0, 3, &[]).is_empty());
        assert_eq!(assign(2, 0, &[]), [None, None]);
        assert_eq!(assign(1, 1, &[FORBIDDEN]), [None]);
    }

    #[test]
    fn as_good_as_trying_everything() {
        let mut seed = 1u64;
        let mut random = move |below: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for round in 0..600 {
            let (rows, columns) = (1 + random(5) as usize, 1 + random(5) as usize);
            let forbidden = random(4);
            let costs: Vec<f64> = (0..rows * columns)
                .map(|_| {
                    if random(4) < forbidden {
                        FORBIDDEN
                    } else {
                        random(100) as f64 - 20.0
                    }
                })
                .collect();
            let (pairs, sum) = value(&assign(rows, columns, &costs), columns, &costs);
            let expected = brute_force(rows, columns, &costs);
            assert!(
                pairs == expected.0 && (sum - expected.1).abs() < 1e-9,
                "round {round}: {rows} x {columns} {costs:?}"
            );
        }
    }
}
