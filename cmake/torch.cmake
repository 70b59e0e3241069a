# libtorch comes out of the PyPI wheel `torch`; its headers and libraries are used as system ones, so that our warnings
# stay ours. Sets the imported targets `glassformer_torch` and `glassformer_torch_python`.
find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.Module)
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
          "import importlib.util, pathlib; print(pathlib.Path(importlib.util.find_spec('torch').origin).parent)"
  OUTPUT_VARIABLE torch_root OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE torch_missing)
if(torch_missing)
  message(FATAL_ERROR "${Python_EXECUTABLE} has no package 'torch'; run 'make setup', or set Python_EXECUTABLE")
endif()
set(torch_lib ${torch_root}/lib)
add_library(glassformer_torch INTERFACE IMPORTED GLOBAL)
target_include_directories(glassformer_torch SYSTEM
                           INTERFACE ${torch_root}/include ${torch_root}/include/torch/csrc/api/include)
target_compile_definitions(glassformer_torch INTERFACE AT_PER_OPERATOR_HEADERS)
target_link_libraries(glassformer_torch INTERFACE ${torch_lib}/libtorch.so ${torch_lib}/libtorch_cpu.so
                                                  ${torch_lib}/libc10.so)
file(GLOB torch_openmp ${torch_lib}/libgomp*.so*)
target_link_libraries(glassformer_torch INTERFACE ${torch_openmp})
add_library(glassformer_torch_python INTERFACE IMPORTED GLOBAL)
target_link_libraries(glassformer_torch_python INTERFACE glassformer_torch ${torch_lib}/libtorch_python.so)
target_include_directories(glassformer_torch_python SYSTEM INTERFACE ${Python_INCLUDE_DIRS})
list(APPEND CMAKE_BUILD_RPATH ${torch_lib})
list(APPEND CMAKE_INSTALL_RPATH $ORIGIN $ORIGIN/../${CMAKE_INSTALL_LIBDIR} ${torch_lib})
