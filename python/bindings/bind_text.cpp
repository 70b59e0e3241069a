#include <pybind11/stl.h>

#include "glassformer/io/gguf.h"
#include "glassformer/text/tokenizer.h"
#include "python/bindings/bindings.h"

namespace py = pybind11;

namespace glassformer {
namespace {

/// The UTF-8 of a Python string, without a copy; a lone surrogate raises UnicodeEncodeError.
std::string_view utf8(const py::str& text) {
  Py_ssize_t size = 0;
  const char* bytes = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
  if (!bytes) throw py::error_already_set();
  return {bytes, static_cast<size_t>(size)};
}

std::shared_ptr<Tokenizer> from_json(const py::bytes& json, const std::string& path, const py::bytes& config) {
  const std::string_view text = json, config_text = config;
  const py::gil_scoped_release release;
  return std::const_pointer_cast<Tokenizer>(Tokenizer::from_json(text, path, config_text));
}

std::shared_ptr<Tokenizer> from_gguf(const std::string& path) {
  return std::const_pointer_cast<Tokenizer>(Tokenizer::from_gguf(read_gguf(MappedFile::open(path))));
}

std::vector<int64_t> encode(const Tokenizer& tokenizer, const py::str& text, bool add_special_tokens) {
  const std::string_view bytes = utf8(text);
  const py::gil_scoped_release release;
  return tokenizer.encode(bytes, {add_special_tokens});
}

py::tuple encode_with_offsets(const Tokenizer& tokenizer, const py::str& text, bool add_special_tokens) {
  const std::string_view bytes = utf8(text);
  Encoding encoding;
  {
    const py::gil_scoped_release release;
    encoding = tokenizer.encode_with_offsets(bytes, {add_special_tokens});
  }
  return py::make_tuple(std::move(encoding.ids), std::move(encoding.tokens), std::move(encoding.offsets));
}

std::string decode(const Tokenizer& tokenizer, const std::vector<int64_t>& ids, bool skip_special_tokens) {
  const py::gil_scoped_release release;
  return tokenizer.decode(ids, {skip_special_tokens});
}

std::vector<std::string> decode_each(const Tokenizer& tokenizer, const std::vector<int64_t>& ids) {
  const py::gil_scoped_release release;
  return tokenizer.decode_each(ids);
}

/// The ids that have a token; all of them below the end, but for gaps.
template <typename Accepts>
std::vector<int64_t> ids_where(const Tokenizer& tokenizer, Accepts accepts) {
  std::vector<int64_t> ids;
  for (int64_t id = 0; id < tokenizer.id_end(); ++id) {
    if (tokenizer.has(id) && accepts(id)) ids.push_back(id);
  }
  return ids;
}

py::dict vocabulary(const Tokenizer& tokenizer) {
  py::dict all;
  for (const int64_t id : ids_where(tokenizer, [](int64_t) { return true; })) all[py::str(tokenizer.token(id))] = id;
  return all;
}

}  // namespace

void bind_text(py::module_& module) {
  py::class_<Tokenizer, std::shared_ptr<Tokenizer>>(module, "Tokenizer")
      .def_static("from_json", &from_json, py::arg("json"), py::arg("path"), py::arg("config") = py::bytes())
      .def_static("from_gguf", &from_gguf, py::arg("path"), py::call_guard<py::gil_scoped_release>())
      .def("encode", &encode, py::arg("text"), py::arg("add_special_tokens") = true)
      .def("encode_with_offsets", &encode_with_offsets, py::arg("text"), py::arg("add_special_tokens") = true)
      .def("decode", &decode, py::arg("ids"), py::arg("skip_special_tokens") = false)
      .def("decode_each", &decode_each, py::arg("ids"))
      .def("token", &Tokenizer::token, py::arg("id"))
      .def("has", &Tokenizer::has, py::arg("id"))
      .def("id_of", &Tokenizer::id_of, py::arg("token"))
      .def("is_special", &Tokenizer::is_special, py::arg("id"))
      .def("is_added", &Tokenizer::is_added, py::arg("id"))
      .def("special_ids",
           [](const Tokenizer& self) { return ids_where(self, [&](int64_t id) { return self.is_special(id); }); })
      .def("added_ids",
           [](const Tokenizer& self) { return ids_where(self, [&](int64_t id) { return self.is_added(id); }); })
      .def("vocabulary", &vocabulary)
      .def_property_readonly("vocabulary_size", &Tokenizer::vocabulary_size)
      .def_property_readonly("model_size", &Tokenizer::model_size)
      .def_property_readonly("id_end", &Tokenizer::id_end)
      .def_property_readonly("bos_id", &Tokenizer::bos_id)
      .def_property_readonly("eos_id", &Tokenizer::eos_id)
      .def_property_readonly("pad_id", &Tokenizer::pad_id)
      .def_property_readonly("unknown_id", &Tokenizer::unknown_id)
      .def_property_readonly("chat_template", &Tokenizer::chat_template);
}

}  // namespace glassformer
