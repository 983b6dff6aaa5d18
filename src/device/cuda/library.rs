//! Finds and loads cuBLASLt: `$RLHF_CUBLASLT`, the system's loader, the toolkit's folders, the folders of Python's
//! wheels. Nothing is started and nothing is asked of the network; a machine without the library computes too.

use std::collections::BTreeSet;
use std::ffi::{OsString, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::error::{Code, Error};

/// The variable that names the library's file, or is `off`.
const VARIABLE: &str = "RLHF_CUBLASLT";

/// File names, newest first. One that is newer than the driver is passed over.
const NAMES: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];

/// `cublasStatus_t`; 0 is success.
pub(super) type Status = c_int;
/// `cublasLtHandle_t` and the handles of descriptors, all of them pointers to what only the library knows.
pub(super) type Handle = *mut c_void;
/// `cublasLtMatmulAlgo_t`: to be copied, not to be looked into.
pub(super) type Algorithm = [u64; 8];

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Answer {
    pub(super) algorithm: Algorithm,
    pub(super) workspace: usize,
    pub(super) status: Status,
    pub(super) waves: f32,
    pub(super) reserved: [c_int; 4],
}

macro_rules! functions {
    ($($field:ident $symbol:ident($($argument:ty),* $(,)?) -> $result:ty;)*) => {
        /// The functions that we call, by their names in cublasLt.h without `cublasLt`.
        #[derive(Debug)]
        pub(super) struct Functions {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> $result,)*
            /// Its code stays as long as the functions do.
            _library: libloading::Library,
        }

        impl Functions {
            fn of(library: libloading::Library) -> std::result::Result<Self, libloading::Error> {
                Ok(Self {
                    // SAFETY: the type is the declaration of that name in cublasLt.h, the same since CUDA 11.
                    $($field: *unsafe { library.get(stringify!($symbol))? },)*
                    _library: library,
                })
            }
        }
    };
}
functions! {
    get_version cublasLtGetVersion() -> usize;
    create cublasLtCreate(*mut Handle) -> Status;
    destroy cublasLtDestroy(Handle) -> Status;
    desc_create cublasLtMatmulDescCreate(*mut Handle, c_int, c_int) -> Status;
    desc_set cublasLtMatmulDescSetAttribute(Handle, c_int, *const c_void, usize) -> Status;
    desc_destroy cublasLtMatmulDescDestroy(Handle) -> Status;
    layout_create cublasLtMatrixLayoutCreate(*mut Handle, c_int, u64, u64, i64) -> Status;
    layout_destroy cublasLtMatrixLayoutDestroy(Handle) -> Status;
    preference_create cublasLtMatmulPreferenceCreate(*mut Handle) -> Status;
    preference_set cublasLtMatmulPreferenceSetAttribute(Handle, c_int, *const c_void, usize) -> Status;
    preference_destroy cublasLtMatmulPreferenceDestroy(Handle) -> Status;
    heuristic cublasLtMatmulAlgoGetHeuristic(
        Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Answer, *mut c_int,
    ) -> Status;
    config_get cublasLtMatmulAlgoConfigGetAttribute(
        *const Algorithm, c_int, *mut c_void, usize, *mut usize,
    ) -> Status;
    matmul cublasLtMatmul(
        Handle, Handle, *const c_void, *const c_void, Handle, *const c_void, Handle, *const c_void, *const c_void,
        Handle, *mut c_void, Handle, *const Algorithm, *mut c_void, usize, *mut c_void,
    ) -> Status;
}

/// The library, loaded.
#[derive(Debug)]
pub(crate) struct Library {
    pub(super) functions: Functions,
    /// As the library counts: 10000 x major + 100 x minor + patch.
    version: usize,
    /// Its file; the name that was asked for where the system does not tell.
    pub(crate) path: String,
}

impl Library {
    /// The version, such as `12.8.4`.
    pub(crate) fn version(&self) -> String {
        let version = self.version;
        format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }
}

/// What the search came to.
#[derive(Debug)]
pub(crate) enum Found {
    /// It is there.
    Library(Library),
    /// The user switched it off.
    Off,
    /// It is not there: what was tried, each with the reason.
    Missing(Vec<String>),
    /// The user named a file that cannot be used.
    Refused(Error),
}

/// The library that this process uses, searched for once. `cuda` is the version of the driver, which must be as new as
/// the library; none is no condition.
pub(crate) fn find(cuda: Option<i32>) -> &'static Found {
    static FOUND: OnceLock<Found> = OnceLock::new();
    FOUND.get_or_init(|| search(&|name| std::env::var_os(name), Path::new("/"), cuda))
}

fn search(variable: &dyn Fn(&str) -> Option<OsString>, root: &Path, cuda: Option<i32>) -> Found {
    if let Some(named) = variable(VARIABLE).filter(|value| !value.is_empty()) {
        if named == "off" {
            return Found::Off;
        }
        // The system's loader would not look for a bare name in the current directory.
        let file = std::path::absolute(&named).ok().filter(|file| file.is_file()).unwrap_or_else(|| named.into());
        return open(&file, cuda).map_or_else(|why| Found::Refused(refused(&why)), Found::Library);
    }
    let mut tried = Vec::new();
    for candidate in candidates(variable, root) {
        match open(&candidate, cuda) {
            Ok(library) => return Found::Library(library),
            Err(why) => tried.push(why),
        }
    }
    Found::Missing(tried)
}

fn refused(why: &str) -> Error {
    Error::new(Code::Device, "cublaslt-refused", format!("the library that {VARIABLE} names cannot be used"))
        .because(why)
        .fix(format!("name the file libcublasLt.so of your CUDA, unset {VARIABLE}, or set it to `off`"))
}

/// Loads one candidate; the error says which it was.
fn open(path: &Path, cuda: Option<i32>) -> std::result::Result<Library, String> {
    let fail = |why: String| format!("{}: {why}", path.display());
    // SAFETY: its initialisers are those of NVIDIA's library, found by its name in folders for libraries, or of the
    // file that the user names.
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| fail(e.to_string()))?;
    let functions = Functions::of(library).map_err(|e| fail(e.to_string()))?;
    // SAFETY: it takes nothing and may be called at any time.
    let version = unsafe { (functions.get_version)() };
    judge(version, cuda).map_err(fail)?;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let path = mapped(&maps).map_or_else(|| path.display().to_string(), str::to_owned);
    Ok(Library { functions, version, path })
}

/// A library of a major version that the driver does not know cannot work with it.
fn judge(version: usize, cuda: Option<i32>) -> std::result::Result<(), String> {
    let (major, newest) = (version / 10_000, cuda.map(|cuda| cuda / 1000));
    match newest.and_then(|newest| usize::try_from(newest).ok()) {
        _ if major < 11 => Err(format!("version {major} is too old")),
        Some(newest) if major > newest => Err(format!("it is of CUDA {major}, the driver of CUDA {newest}")),
        _ => Ok(()),
    }
}

/// The file of the loaded library, in the kernel's list of what a process has in memory.
fn mapped(maps: &str) -> Option<&str> {
    let is_library = |path: &&str| path.rsplit('/').next().is_some_and(|name| name.starts_with("libcublasLt"));
    maps.lines().filter_map(|line| line.get(line.find('/')?..)).find(is_library)
}

/// Bare names for the system's loader, then the files that are there.
fn candidates(variable: &dyn Fn(&str) -> Option<OsString>, root: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = NAMES.iter().map(PathBuf::from).collect();
    for folder in folders(variable, root) {
        found.extend(NAMES.iter().map(|name| folder.join(name)).filter(|file| file.is_file()));
    }
    found
}

fn folders(variable: &dyn Fn(&str) -> Option<OsString>, root: &Path) -> Vec<PathBuf> {
    let of = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let toolkits = [of("CUDA_HOME"), of("CUDA_PATH"), Some(root.join("usr/local/cuda"))];
    let inside = |toolkit: PathBuf| ["lib64", "targets/x86_64-linux/lib"].map(|folder| toolkit.join(folder));
    let mut folders: Vec<PathBuf> = toolkits.into_iter().flatten().flat_map(inside).collect();
    // A virtual environment or an installation of Python is where `bin` of PATH is.
    let path = variable("PATH").unwrap_or_default();
    let above = |bin: PathBuf| bin.parent().filter(|_| bin.ends_with("bin")).map(Path::to_owned);
    let prefixes = [of("VIRTUAL_ENV"), of("CONDA_PREFIX"), of("HOME").map(|home| home.join(".local"))];
    let prefixes = prefixes.into_iter().flatten().chain(std::env::split_paths(&path).filter_map(above));
    for prefix in prefixes.chain([root.join("usr/local"), root.join("usr")]) {
        folders.extend(wheels(&prefix.join("lib")));
    }
    let mut seen = BTreeSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

/// Where wheels put the library, below the `lib` of an installation of Python; the newest Python first.
fn wheels(lib: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(lib).into_iter().flatten().flatten();
    let is_python = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"));
    let mut pythons: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_python).collect();
    pythons.sort_by(|a, b| b.cmp(a));
    let inside = |python: &PathBuf| {
        ["site-packages", "dist-packages"].map(|packages| python.join(packages).join("nvidia")).into_iter().collect()
    };
    let nvidia: Vec<PathBuf> = pythons.iter().flat_map::<Vec<PathBuf>, _>(inside).collect();
    nvidia.iter().flat_map(|nvidia| ["cu13/lib", "cublas/lib"].map(|folder| nvidia.join(folder))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine: a folder, and variables whose values lie in it.
    struct Machine {
        dir: tempfile::TempDir,
        variables: Vec<(&'static str, OsString)>,
    }

    impl Machine {
        fn new(files: &[&str], variables: &[(&'static str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for file in files {
                let path = dir.path().join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "not a library").unwrap();
            }
            let place = |value: &str| std::env::join_paths(value.split(':').map(|v| dir.path().join(v))).unwrap();
            let variables = variables.iter().map(|(name, value)| (*name, place(value))).collect();
            Self { dir, variables }
        }

        fn variable(&self, name: &str) -> Option<OsString> {
            self.variables.iter().find(|row| row.0 == name).map(|row| row.1.clone())
        }

        /// The candidates, as paths from the folder.
        fn candidates(&self) -> Vec<String> {
            let found = candidates(&|name| self.variable(name), self.dir.path());
            let inside = |path: &PathBuf| path.strip_prefix(self.dir.path()).unwrap_or(path).display().to_string();
            found.iter().map(inside).collect()
        }
    }

    #[test]
    fn the_search_has_an_order() {
        let machine = Machine::new(
            &[
                "usr/lib/python3/dist-packages/nvidia/cublas/lib/libcublasLt.so.12",
                "usr/local/cuda/targets/x86_64-linux/lib/libcublasLt.so",
                "tool/lib64/libcublasLt.so.12",
                "env/lib/python3.11/site-packages/nvidia/cublas/lib/libcublasLt.so.12",
                "env/lib/python3.11/site-packages/nvidia/cu13/lib/libcublasLt.so.13",
                "env/lib/python3.12/site-packages/nvidia/cu13/lib/libcublasLt.so.13",
                "person/.local/lib/python3.10/site-packages/nvidia/cublas/lib/libcublasLt.so.12",
                "other/lib/python3.9/site-packages/nvidia/cublas/lib/libcublasLt.so.12",
                "env/lib/perl/site-packages/nvidia/cublas/lib/libcublasLt.so.12",
            ],
            &[("CUDA_HOME", "tool"), ("VIRTUAL_ENV", "env"), ("HOME", "person"), ("PATH", "env/bin:other/bin:tool")],
        );
        assert_eq!(
            machine.candidates(),
            [
                "libcublasLt.so.13",
                "libcublasLt.so.12",
                "libcublasLt.so",
                "tool/lib64/libcublasLt.so.12",
                "usr/local/cuda/targets/x86_64-linux/lib/libcublasLt.so",
                "env/lib/python3.12/site-packages/nvidia/cu13/lib/libcublasLt.so.13",
                "env/lib/python3.11/site-packages/nvidia/cu13/lib/libcublasLt.so.13",
                "env/lib/python3.11/site-packages/nvidia/cublas/lib/libcublasLt.so.12",
                "person/.local/lib/python3.10/site-packages/nvidia/cublas/lib/libcublasLt.so.12",
                "other/lib/python3.9/site-packages/nvidia/cublas/lib/libcublasLt.so.12",
                "usr/lib/python3/dist-packages/nvidia/cublas/lib/libcublasLt.so.12",
            ]
        );
        assert_eq!(Machine::new(&[], &[]).candidates(), NAMES);
    }

    #[test]
    fn what_is_no_library_is_passed_over_unless_it_was_named() {
        let file = "usr/local/cuda/lib64/libcublasLt.so.12";
        let machine = Machine::new(&[file], &[]);
        // A machine may have the library where its loader looks; the file in the folder is none in any case.
        if let Found::Missing(tried) = search(&|name| machine.variable(name), machine.dir.path(), None) {
            assert!(tried.last().unwrap().contains(file), "{tried:?}");
        }
        let machine = Machine::new(&[file], &[(VARIABLE, file)]);
        let Found::Refused(error) = search(&|name| machine.variable(name), machine.dir.path(), None) else {
            panic!("not refused");
        };
        assert_eq!((error.code(), error.id()), (Code::Device, "cublaslt-refused"));
        assert!(error.to_string().contains(file) && error.to_string().contains("`off`"), "{error}");
        let off = |name: &str| (name == VARIABLE).then(|| "off".into());
        assert!(matches!(search(&off, Path::new("/"), None), Found::Off));
    }

    #[test]
    fn a_library_must_fit_the_driver() {
        assert_eq!(judge(120_804, Some(12_020)), Ok(()));
        assert_eq!(judge(120_804, Some(13_000)), Ok(()));
        assert_eq!(judge(130_002, None), Ok(()));
        assert!(judge(130_002, Some(12_090)).unwrap_err().contains("of CUDA 13, the driver of CUDA 12"));
        assert!(judge(100_200, None).is_err());
    }

    #[test]
    fn the_loaded_file_is_found() {
        let maps = "7f00-7f01 r-xp 00000000 08:01 12  /usr/lib/libc.so.6\n7f02-7f03 rw-p 00000000 00:00 0 \n\
                    7f04-7f05 r--p 00000000 08:01 13  /opt/my cuda/lib64/libcublasLt.so.12.8.4.1\n";
        assert_eq!(mapped(maps), Some("/opt/my cuda/lib64/libcublasLt.so.12.8.4.1"));
        assert_eq!(mapped("7f00-7f01 r-xp 00000000 08:01 12  /usr/lib/libcublas.so.12"), None);
    }

    #[test]
    fn the_answer_has_the_headers_layout() {
        assert_eq!((size_of::<Answer>(), std::mem::offset_of!(Answer, status)), (96, 72));
    }
}
