//! Warp-wide instructions: shuffles, votes, reductions. The lanes that a member mask names must all be here.

use super::error::Kind;
use super::inst::{Inst, Rmw, ShflMode, VoteMode};
use super::memory::Cause;
use super::run::{Stop, halt};
use super::warp::{ALL, Warp};

/// Fails unless every running lane's member mask names exactly lanes that run this instruction with the same mask.
#[inline(always)]
pub(super) fn members(w: &Warp, masks: &[u32; 32], mask: u32) -> Result<(), Stop> {
    if masks[mask.trailing_zeros() as usize & 31] == mask && (0..32).all(|l| mask >> l & 1 == 0 || masks[l] == mask) {
        return Ok(());
    }
    for l in (0..32).filter(|&l| mask >> l & 1 == 1) {
        let named = masks[l as usize] & w.born;
        let same = (0..32).all(|o| named >> o & 1 == 0 || mask >> o & 1 == 0 || masks[o] & w.born == named);
        if named >> l & 1 == 1 && named & !mask == 0 && same {
            continue;
        }
        let gone = named & !w.live;
        let what = if named >> l & 1 == 0 {
            format!("member mask {named:#010x} does not name the lane itself")
        } else if gone != 0 {
            format!("member mask {named:#010x} names lanes {gone:#010x} that have exited")
        } else {
            format!("member mask {named:#010x}, but only lanes {mask:#010x} are here")
        };
        return Err(halt(Cause(Kind::Divergence, what), Some(l)));
    }
    Ok(())
}

/// shfl.sync
pub(super) fn shuffle(w: &mut Warp, i: &Inst, mask: u32, mode: ShflMode, pair: bool) -> Result<(), Stop> {
    let (a, b, c) = (*w.word(i.src[0]), w.word(i.src[1]), w.word(i.src[2]));
    let masks = w.word(i.src[3]);
    members(w, masks, mask)?;
    let (mut out, mut inside, mut used) = ([0u32; 32], 0u32, 0u32);
    for l in 0..32u32 {
        let (b, c) = (b[l as usize] & 31, c[l as usize]);
        let segment = c >> 8 & 31;
        let most = l & segment | c & 31 & !segment;
        let (from, ok) = match mode {
            ShflMode::Up => (l.wrapping_sub(b), l as i32 - b as i32 >= most as i32),
            ShflMode::Down => (l + b, l + b <= most),
            ShflMode::Bfly => (l ^ b, l ^ b <= most),
            ShflMode::Idx => {
                let from = l & segment | b & !segment;
                (from, from <= most)
            }
        };
        let from = if ok { from & 31 } else { l };
        inside |= u32::from(ok) << l;
        used |= (mask >> l & 1) << from;
        out[l as usize] = a[from as usize];
    }
    if used & !mask != 0 {
        let lane = (used & !mask).trailing_zeros();
        return Err(halt(
            Cause(Kind::Divergence, format!("reads lane {lane}, which takes no part")),
            Some(mask.trailing_zeros()),
        ));
    }
    w.put(i.dst[0], mask, &out);
    if pair {
        w.put_pred(i.dst[1], mask, inside);
    }
    Ok(())
}

/// vote.sync
pub(super) fn vote(w: &mut Warp, i: &Inst, mask: u32, mode: VoteMode, negated: bool) -> Result<(), Stop> {
    let masks = *w.word(i.src[0]);
    members(w, &masks, mask)?;
    let p = (w.pred(i.src[1]) ^ if negated { ALL } else { 0 }) & mask;
    let mut all = 0u32;
    let mut ballots = [0u32; 32];
    for l in 0..32 {
        let group = masks[l] & mask;
        ballots[l] = p & group;
        let yes = match mode {
            VoteMode::Any => ballots[l] != 0,
            VoteMode::All => ballots[l] == group,
            _ => ballots[l] == 0 || ballots[l] == group,
        };
        all |= u32::from(yes) << l;
    }
    if mode == VoteMode::Ballot {
        w.put(i.dst[0], mask, &ballots);
    } else {
        w.put_pred(i.dst[0], mask, all);
    }
    Ok(())
}

/// redux.sync
pub(super) fn reduce(w: &mut Warp, i: &Inst, mask: u32, rmw: Rmw) -> Result<(), Stop> {
    let (masks, a) = (*w.word(i.src[0]), *w.word(i.src[1]));
    members(w, &masks, mask)?;
    let out: [u32; 32] = std::array::from_fn(|l| {
        let group = masks[l] & mask;
        let values = (0..32).filter(|o| group >> o & 1 == 1).map(|o| a[o]);
        values
            .reduce(|x, y| match rmw {
                Rmw::Add => x.wrapping_add(y),
                Rmw::MinU => x.min(y),
                Rmw::MaxU => x.max(y),
                Rmw::MinS => (x as i32).min(y as i32) as u32,
                Rmw::MaxS => (x as i32).max(y as i32) as u32,
                Rmw::And => x & y,
                Rmw::Or => x | y,
                _ => x ^ y,
            })
            .unwrap_or(0)
    });
    w.put(i.dst[0], mask, &out);
    Ok(())
}

/// match.any.sync
pub(super) fn match_any(w: &mut Warp, i: &Inst, mask: u32) -> Result<(), Stop> {
    let (masks, a) = (*w.word(i.src[0]), *w.word(i.src[1]));
    members(w, &masks, mask)?;
    let out: [u32; 32] = std::array::from_fn(|l| {
        let group = masks[l] & mask;
        (0..32).filter(|&o| group >> o & 1 == 1 && a[o] == a[l]).fold(0, |m, o| m | 1 << o)
    });
    w.put(i.dst[0], mask, &out);
    Ok(())
}

/// Fails unless all 32 lanes are here, as `.aligned` instructions ask.
#[inline(always)]
pub(super) fn whole(w: &Warp, mask: u32) -> Result<(), Stop> {
    if mask == ALL {
        return Ok(());
    }
    let missing = !mask;
    let what = if missing & w.born & !w.live != 0 {
        format!("all 32 lanes must take part, lanes {:#010x} have exited", w.born & !w.live)
    } else {
        format!("all 32 lanes must take part, lanes {missing:#010x} do not")
    };
    Err(halt(Cause(Kind::Divergence, what), Some(mask.trailing_zeros() & 31)))
}
