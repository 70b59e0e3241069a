# `cmake --install <build> --prefix <folder>`: the public headers, both libraries, the program, and a CMake package, so
# that other projects say `find_package(glassformer)` and link to `glassformer::glassformer` (or `glassformer::files`,
# which needs no torch).
include(cmake/headers.cmake)
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/glassformer)

foreach(header ${public_headers})
  get_filename_component(folder ${header} DIRECTORY)
  install(FILES glassformer/${header} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/glassformer/${folder})
endforeach()
install(TARGETS glassformer glassformer_files EXPORT glassformer-targets)
if(TARGET glassformer_cli)
  install(TARGETS glassformer_cli)
endif()

install(EXPORT glassformer-targets NAMESPACE glassformer:: DESTINATION ${package_dir})
file(STRINGS ${torch_root}/version.py torch_version REGEX "^__version__" LIMIT_COUNT 1)
string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" torch_version "${torch_version}")
configure_package_config_file(cmake/glassformer-config.cmake.in ${PROJECT_BINARY_DIR}/glassformer-config.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/glassformer-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/glassformer-config.cmake ${PROJECT_BINARY_DIR}/glassformer-config-version.cmake
        DESTINATION ${package_dir})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
