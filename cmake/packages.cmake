# Libraries from Debian, by name.
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(nlohmann_json 3.11 REQUIRED)
find_package(simdjson REQUIRED)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(icu REQUIRED IMPORTED_TARGET icu-uc)
find_package(CLI11 REQUIRED)
