//! Kernels on a GPU: each PTX text is handed to the driver when an entry of it is first launched, and stays.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::ffi::{CString, c_int, c_void};
use std::ptr;

use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute, CUjit_option, CUmodule};

use super::fault::check;
use crate::device::kernel::{Entry, Source};
use crate::error::{Error, Result};

/// Dynamic shared bytes that a block may have without asking (CUDA C++ programming guide, "Shared Memory").
const SHARED_FREE: u32 = 48 << 10;

/// Bytes for what the driver's compiler has to say.
const LOG_BYTES: usize = 8 << 10;

impl Source {
    /// A text for every GPU, cards among them.
    ///
    /// # Safety
    /// On a card nothing is checked but the number and the kinds of the arguments, and a kernel can write to any memory
    /// that the card can reach, the process's among it. So for every launch that will be made of it: each access must
    /// lie inside a tensor that the launch was given, whose elements somebody has written if it is read; no two threads
    /// may race; and all threads must end. The emulator finds breaches of all but the last two on the inputs that it is
    /// given, so launch it there first, at the smallest and the oddest sizes.
    pub const unsafe fn for_cuda(name: &'static str, text: &'static str) -> Self {
        let mut source = Self::new(name, text);
        source.for_cuda = true;
        source
    }

    /// Which text it is: its address, as every one that is launched stays for ever. A name may stand twice.
    fn id(&'static self) -> usize {
        ptr::from_ref(self).addr()
    }
}

#[derive(Debug, Clone, Copy)]
struct Function {
    handle: CUfunction,
    /// Dynamic shared bytes that it was given leave for.
    shared: u32,
}

/// What is loaded in one context. That context must be current in every call and when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Modules {
    modules: HashMap<usize, CUmodule>,
    functions: HashMap<(usize, &'static str), Function>,
}

impl Modules {
    /// The function of an entry, with leave for so many dynamic shared bytes a block.
    pub(super) fn function(&mut self, entry: &Entry, shared: u32) -> Result<CUfunction> {
        let key = (entry.source.id(), entry.name);
        if !self.functions.contains_key(&key) {
            let handle = self.find(entry)?;
            self.functions.insert(key, Function { handle, shared: SHARED_FREE });
        }
        let Some(function) = self.functions.get_mut(&key) else {
            return Err(Error::failure("kernel-missing", "a function that was loaded is gone").at(entry.name));
        };
        if shared > function.shared {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a module that is loaded.
            let result = unsafe { sys::cuFuncSetAttribute(function.handle, attribute, shared as c_int) };
            check("asking for shared memory", result).map_err(|e| e.at(entry.name))?;
            function.shared = shared;
        }
        Ok(function.handle)
    }

    fn find(&mut self, entry: &Entry) -> Result<CUfunction> {
        let module = self.module(entry.source)?;
        let place = |_| Error::failure("kernel-missing", "the name of an entry has a zero byte").at(entry.name);
        let name = CString::new(entry.name).map_err(place)?;
        let mut function = ptr::null_mut();
        // SAFETY: `function` may be written, the module is loaded, and the name ends with a zero byte.
        let result = unsafe { sys::cuModuleGetFunction(&raw mut function, module, name.as_ptr()) };
        check("looking for a kernel", result).map_err(|e| e.at(entry.name))?;
        Ok(function)
    }

    /// The module of a text, loaded if it is not.
    pub(super) fn module(&mut self, source: &'static Source) -> Result<CUmodule> {
        check_leave(source)?;
        match self.modules.entry(source.id()) {
            Slot::Occupied(slot) => Ok(*slot.get()),
            Slot::Vacant(slot) => Ok(*slot.insert(load(source)?)),
        }
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        for module in self.modules.values() {
            // SAFETY: the module is loaded, and nothing runs any more: the driver has waited. An error has no reader.
            let _ = unsafe { sys::cuModuleUnload(*module) };
        }
    }
}

/// An error unless somebody answers for what a text does on a card.
fn check_leave(source: &Source) -> Result<()> {
    if source.for_cuda {
        return Ok(());
    }
    Err(Error::usage("kernel-unchecked", "this PTX text is for the emulator")
        .at(source.name)
        .because("on a card nothing checks what a kernel reads and writes")
        .fix("launch it on `emulated` first; for a card, make it with the unsafe `Source::for_cuda`"))
}

/// Compiles a text for the current context's GPU; an error has what the compiler said.
fn load(source: &Source) -> Result<CUmodule> {
    let text = CString::new(source.text)
        .map_err(|_| Error::failure("kernel-text", "the PTX text has a zero byte").at(source.name))?;
    let mut log = vec![0u8; LOG_BYTES];
    let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // The second value is a number in the place of a pointer: so wants the driver.
    let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), ptr::without_provenance_mut(LOG_BYTES)];
    let mut module = ptr::null_mut();
    // SAFETY: the text ends with a zero byte; there are as many values as options, and the log's bytes and their number
    // belong together and outlive the call; `module` may be written.
    let result = unsafe {
        sys::cuModuleLoadDataEx(
            &raw mut module,
            text.as_ptr().cast(),
            options.len() as u32,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    check("loading a kernel's text", result).map_err(|error| said(error.at(format!("{}.ptx", source.name)), &log))?;
    Ok(module)
}

/// The error with the compiler's words, if there are any.
fn said(error: Error, log: &[u8]) -> Error {
    let words = String::from_utf8_lossy(log.split(|byte| *byte == 0).next().unwrap_or_default()).trim().to_owned();
    if words.is_empty() { error } else { error.because(words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_not_handed_what_nobody_answers_for() {
        static EMULATED: Source = Source::new("a", "");
        // SAFETY: it has no entry.
        static ANSWERED: Source = unsafe { Source::for_cuda("a", "") };
        assert_eq!(check_leave(&EMULATED).unwrap_err().id(), "kernel-unchecked");
        assert!(
            check_leave(&ANSWERED).is_ok() && crate::device::kernel::SOURCES.iter().all(|s| check_leave(s).is_ok())
        );
        assert_ne!(EMULATED.id(), ANSWERED.id(), "of one name");
    }

    #[test]
    fn the_compilers_words_are_the_reason() {
        let error = || Error::failure("cuda-module", "it failed").because("CUDA_ERROR_INVALID_PTX (218)");
        let with = said(error(), b"ptxas error : line 3: Unknown symbol 'x'\n\0\0old bytes");
        assert!(with.to_string().contains("why: ptxas error : line 3: Unknown symbol 'x'"), "{with}");
        assert_eq!(said(error(), &[0; 16]), error());
    }
}
