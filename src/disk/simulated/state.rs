//! What is on a disk: what processes see, what is durable, and what is neither here nor there. Until a file is synced,
//! each of its writes may be lost, torn, or leave other bytes; until a directory is, each change of its names may be
//! lost, in any combination. A rename changes both names or none. A sync of one does nothing for the other.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rand::RngExt;

use super::Op;
use crate::random::{Philox, Stage};

/// How much of what was not synced a power failure takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    Nothing,
    Everything,
    /// What this number draws.
    Some(u32),
}

/// The bytes of a file.
#[derive(Debug, Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    digest: OnceCell<u64>,
}

impl Content {
    fn new(bytes: Vec<u8>) -> Rc<Self> {
        Rc::new(Self { bytes, digest: OnceCell::new() })
    }

    fn change(&mut self, change: &Change) {
        self.digest.take();
        match change {
            Change::Write(offset, bytes) => overwrite(&mut self.bytes, *offset, bytes),
            Change::SetLength(length) => self.bytes.resize(*length, 0),
        }
    }

    fn digest(&self) -> u64 {
        *self.digest.get_or_init(|| {
            let mut hasher = DefaultHasher::new();
            self.bytes.hash(&mut hasher);
            hasher.finish()
        })
    }
}

fn overwrite(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    file.resize(file.len().max(offset + bytes.len()), 0);
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Directories and files by their path, as a process finds them. Equal trees share their bytes where they can.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree(BTreeMap<PathBuf, Option<Rc<Content>>>);

impl Tree {
    /// What is under `root`.
    pub(crate) fn read(root: &Path) -> Self {
        let (mut tree, mut dirs) = (Self::default(), vec![PathBuf::new()]);
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(root.join(&dir)).unwrap() {
                let entry = entry.unwrap();
                let path = dir.join(entry.file_name());
                let content = if entry.file_type().unwrap().is_dir() {
                    dirs.push(path.clone());
                    None
                } else {
                    Some(Content::new(fs::read(entry.path()).unwrap()))
                };
                tree.0.insert(path, content);
            }
        }
        tree
    }

    /// Puts everything into the directory `root`, in place of what is there.
    pub(crate) fn write(&self, root: &Path) {
        if root.exists() {
            fs::remove_dir_all(root).unwrap();
        }
        fs::create_dir_all(root).unwrap();
        for (path, content) in &self.0 {
            match content {
                Some(content) => fs::write(root.join(path), &content.bytes).unwrap(),
                None => fs::create_dir(root.join(path)).unwrap(),
            }
        }
    }

    /// The bytes of a file.
    pub(crate) fn file(&self, path: impl AsRef<Path>) -> Option<&[u8]> {
        self.0.get(path.as_ref())?.as_ref().map(|content| content.bytes.as_slice())
    }

    /// The names in a directory.
    pub(crate) fn names(&self, dir: impl AsRef<Path>) -> Vec<String> {
        let inside = self.0.keys().filter(|path| path.parent() == Some(dir.as_ref()));
        inside.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect()
    }

    /// Every file and directory.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }

    /// Every file with its bytes.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.0.iter().filter_map(|(path, content)| Some((path.as_path(), content.as_ref()?.bytes.as_slice())))
    }

    /// A number that differs, in all likelihood, for trees that differ.
    pub(crate) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (path, content) in &self.0 {
            (path, content.as_ref().map(|content| content.digest())).hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// A change of a file's bytes.
#[derive(Debug, Clone)]
enum Change {
    Write(usize, Rc<[u8]>),
    SetLength(usize),
}

/// A change of names that happens at once: each gets a node, or loses the one that it has.
type Naming = Vec<(OsString, Option<usize>)>;

/// A file or directory, apart from its names: what processes see, what is durable, and the changes that lead from the
/// one to the other.
#[derive(Debug, Clone)]
enum Node {
    File { cached: Rc<Content>, durable: Rc<Content>, pending: Vec<Change> },
    Dir { cached: BTreeMap<OsString, usize>, durable: BTreeMap<OsString, usize>, pending: Vec<Naming> },
}

/// The disk at one point of a run. Node 0 is the root.
#[derive(Debug, Clone)]
pub(crate) struct Disk(Vec<Node>);

impl Disk {
    /// A disk on which `tree` is durable.
    pub(crate) fn new(tree: &Tree) -> Self {
        let mut disk = Self(vec![Node::dir()]);
        for (path, content) in &tree.0 {
            let node = content.as_ref().map_or_else(Node::dir, |content| Node::file(Rc::clone(content)));
            let id = disk.add(node);
            disk.rename_in(path, vec![(name(path), Some(id))]);
        }
        for node in &mut disk.0 {
            node.sync();
        }
        disk
    }

    fn add(&mut self, node: Node) -> usize {
        self.0.push(node);
        self.0.len() - 1
    }

    /// The node that a path names now.
    fn find(&self, path: &Path) -> usize {
        path.iter().fold(0, |id, name| match &self.0[id] {
            Node::Dir { cached, .. } => *cached.get(name).unwrap_or_else(|| panic!("{} is not there", path.display())),
            Node::File { .. } => panic!("{} leads through a file", path.display()),
        })
    }

    /// Changes names in the directory of `path`.
    fn rename_in(&mut self, path: &Path, naming: Naming) {
        let id = self.find(path.parent().unwrap());
        let Node::Dir { cached, pending, .. } = &mut self.0[id] else { panic!("{} is no directory", path.display()) };
        name_all(cached, &naming);
        pending.push(naming);
    }

    fn change(&mut self, path: &Path, change: Change) {
        let id = self.find(path);
        let Node::File { cached, pending, .. } = &mut self.0[id] else { panic!("{} is no file", path.display()) };
        Rc::make_mut(cached).change(&change);
        pending.push(change);
    }

    /// A call takes effect.
    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::CreateDir(path) => {
                let id = self.add(Node::dir());
                self.rename_in(path, vec![(name(path), Some(id))]);
            }
            Op::CreateFile(path) => {
                let id = self.add(Node::file(Rc::default()));
                self.rename_in(path, vec![(name(path), Some(id))]);
            }
            Op::Write { path, offset, bytes } => self.change(path, Change::Write(*offset as usize, Rc::clone(bytes))),
            Op::SetLength { path, bytes } => self.change(path, Change::SetLength(*bytes as usize)),
            Op::SyncFile(path) | Op::SyncDir(path) => {
                let id = self.find(path);
                self.0[id].sync();
            }
            Op::Rename { from, to } => {
                assert_eq!(from.parent(), to.parent(), "a rename from one directory to another is not modelled");
                let id = self.find(from);
                self.rename_in(to, vec![(name(from), None), (name(to), Some(id))]);
            }
            Op::RemoveFile(path) | Op::RemoveDir(path) => self.rename_in(path, vec![(name(path), None)]),
            Op::Ignored => {}
        }
    }

    /// What processes see, and what is left when one of them is killed.
    pub(crate) fn cached(&self) -> Tree {
        let (mut tree, mut dirs) = (Tree::default(), vec![(PathBuf::new(), &self.0[0])]);
        while let Some((dir, node)) = dirs.pop() {
            let Node::Dir { cached, .. } = node else { continue };
            for (name, id) in cached {
                let (path, node) = (dir.join(name), &self.0[*id]);
                let content = match node {
                    Node::File { cached, .. } => Some(Rc::clone(cached)),
                    Node::Dir { .. } => None,
                };
                tree.0.insert(path.clone(), content);
                dirs.push((path, node));
            }
        }
        tree
    }

    /// What may be left when the power fails; `call` makes the draws of two calls differ.
    pub(crate) fn after_power_loss(&self, loss: Loss, call: usize) -> Tree {
        let seed = match loss {
            Loss::Nothing => return self.cached(),
            Loss::Everything => None,
            Loss::Some(seed) => Some(seed),
        };
        let nodes = (0_u32..).zip(&self.0);
        let left: Vec<Node> = nodes.map(|(id, node)| node.left(seed.map(|seed| Fate::new(seed, call, id)))).collect();
        Self(left).cached()
    }
}

fn name(path: &Path) -> OsString {
    path.file_name().unwrap().to_owned()
}

fn name_all(names: &mut BTreeMap<OsString, usize>, naming: &Naming) {
    for (name, node) in naming {
        match node {
            Some(node) => names.insert(name.clone(), *node),
            None => names.remove(name),
        };
    }
}

impl Node {
    fn dir() -> Self {
        Self::Dir { cached: BTreeMap::new(), durable: BTreeMap::new(), pending: Vec::new() }
    }

    fn file(content: Rc<Content>) -> Self {
        Self::File { cached: content, durable: Rc::default(), pending: Vec::new() }
    }

    /// What is cached is durable from now on.
    fn sync(&mut self) {
        match self {
            Self::File { cached, durable, pending } => {
                *durable = Rc::clone(cached);
                pending.clear();
            }
            Self::Dir { cached, durable, pending } => {
                durable.clone_from(cached);
                pending.clear();
            }
        }
    }

    /// The node after a power failure; without a fate all that is pending is lost.
    fn left(&self, fate: Option<Fate>) -> Self {
        match (self, fate) {
            (Self::File { durable, pending, .. }, Some(mut fate)) if !pending.is_empty() => {
                let mut content = Content::clone(durable);
                pending.iter().for_each(|change| fate.suffer(&mut content.bytes, change));
                Self::file(Content::new(content.bytes))
            }
            (Self::File { durable, .. }, _) => Self::file(Rc::clone(durable)),
            (Self::Dir { durable, pending, .. }, fate) => {
                let mut names = durable.clone();
                if let Some(mut fate) = fate {
                    pending.iter().filter(|_| fate.keeps()).for_each(|naming| name_all(&mut names, naming));
                }
                Self::Dir { cached: names, durable: BTreeMap::new(), pending: Vec::new() }
            }
        }
    }
}

/// What happens to the pending changes of one node.
struct Fate {
    random: Philox,
    /// Of four changes, how many are kept: different nodes fare differently, and some lose or keep all.
    kept: u32,
}

impl Fate {
    fn new(seed: u32, call: usize, node: u32) -> Self {
        let mut random = Philox::new(u64::from(seed), Stage::Demo, call as u32, node);
        let kept = random.random_range(0..=4);
        Self { random, kept }
    }

    fn keeps(&mut self) -> bool {
        self.random.random_range(0..4) < self.kept
    }

    /// A change reaches the disk, or part of it, or nothing.
    fn suffer(&mut self, file: &mut Vec<u8>, change: &Change) {
        let kept = self.keeps();
        match change {
            Change::SetLength(length) if kept => file.resize(*length, 0),
            Change::SetLength(_) => {}
            Change::Write(offset, bytes) if kept => overwrite(file, *offset, bytes),
            Change::Write(offset, bytes) => match self.random.random_range(0..4) {
                0 => {}
                1 => overwrite(file, *offset, &bytes[..self.random.random_range(0..=bytes.len())]),
                // The length is a change of its own, which may arrive where the bytes do not.
                2 => file.resize(file.len().max(offset + bytes.len()), 0),
                _ => {
                    let mut other = bytes.to_vec();
                    let start = self.random.random_range(0..bytes.len());
                    other[start..].iter_mut().for_each(|byte| *byte = !*byte);
                    overwrite(file, *offset, &other);
                }
            },
        }
    }
}
